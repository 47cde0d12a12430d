package config

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// check refuses settings that are right one by one and wrong together.
func (c *Config) check() error {
	if c.RetryInterval > c.Interval {
		return fmt.Errorf("retry_interval (%s) must not be longer than interval (%s): a member that missed is asked sooner, so lower retry_interval",
			formatDuration(c.RetryInterval), formatDuration(c.Interval))
	}
	if hang := c.DetectHang(); c.HoldTimeout <= hang {
		return fmt.Errorf("hold_timeout (%s) must be longer than the %s in which a hanging primary is declared down (interval + threshold * the longer of timeout and retry_interval), or clients are turned away before a failover can begin: raise hold_timeout, or lower timeout or threshold",
			formatDuration(c.HoldTimeout), formatDuration(hang))
	}
	if c.Admin != "" && overlap(c.Listen, c.Admin) {
		return fmt.Errorf("admin (%s) must not have the address of listen (%s): give one of them another port", c.Admin, c.Listen)
	}
	for _, m := range c.Members {
		addr := net.JoinHostPort(m.Conn.Host, fmt.Sprint(m.Conn.Port))
		if overlap(c.Listen, addr) {
			return fmt.Errorf("members.%s (%s) must not be what the proxy listens on (listen %s): it would connect to itself", m.Name, addr, c.Listen)
		}
	}
	return c.checkClients()
}

// overlap reports whether two addresses are surely the same port of the same
// host. Names are not resolved.
func overlap(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB || portA == "0" {
		return false
	}
	return strings.EqualFold(hostA, hostB) ||
		everywhere(hostA) && local(hostB) || everywhere(hostB) && local(hostA) ||
		strings.EqualFold(hostA, "localhost") && local(hostB) || strings.EqualFold(hostB, "localhost") && local(hostA)
}

// everywhere reports whether a host to listen on means all interfaces.
func everywhere(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "" || err == nil && ip.IsUnspecified()
}

// local reports whether host surely is this machine.
func local(host string) bool {
	ip, err := netip.ParseAddr(host)
	return everywhere(host) || strings.EqualFold(host, "localhost") || err == nil && ip.IsLoopback()
}
