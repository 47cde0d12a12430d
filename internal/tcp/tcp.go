// Package tcp sets what every TCP connection of the proxy needs, so that a peer
// that is gone without a word is noticed.
package tcp

import (
	"net"
	"syscall"
	"time"
)

// Options are the choices for one kind of connection. Zero in a field means the
// system's default.
type Options struct {
	// KeepAlive is the time without traffic before the first keep-alive probe,
	// and between two of them.
	KeepAlive time.Duration
	// UserTimeout is how long sent data may stay unacknowledged before the
	// connection is broken (TCP_USER_TIMEOUT, RFC 5482). Linux only.
	UserTimeout time.Duration
}

func (o Options) keepAlive() net.KeepAliveConfig {
	c := net.KeepAliveConfig{Enable: true, Count: 3}
	if o.KeepAlive > 0 {
		c.Idle, c.Interval = o.KeepAlive, o.KeepAlive
	}
	return c
}

// Dialer returns a dialer whose connections have the options from their first
// packet on. It dials unix sockets too, for which they mean nothing.
func (o Options) Dialer() *net.Dialer {
	return &net.Dialer{
		KeepAliveConfig: o.keepAlive(),
		Control: func(network, _ string, raw syscall.RawConn) error {
			if network == "unix" {
				return nil
			}
			return setUserTimeout(raw, o.UserTimeout)
		},
	}
}

// Apply sets the options on an accepted connection; other than TCP ones are
// left alone.
func (o Options) Apply(c net.Conn) error {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	if err := t.SetKeepAliveConfig(o.keepAlive()); err != nil {
		return err
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return err
	}
	return setUserTimeout(raw, o.UserTimeout)
}
