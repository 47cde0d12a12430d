// Package tcp sets what every TCP connection of the proxy needs, so that a peer
// that is gone without a word is noticed.
package tcp

import (
	"net"
	"syscall"
	"time"
)

// Options are the choices for one kind of connection.
type Options struct {
	// KeepAlive is the time without traffic before the first keep-alive probe,
	// and between two of them; after probes without an answer the connection is
	// broken. Zero means what package net does: 9 probes, every 15 s.
	KeepAlive time.Duration
	// UserTimeout is how long sent data may stay unacknowledged before the
	// connection is broken (TCP_USER_TIMEOUT, RFC 5482). It decides about
	// probes too. Zero means the system's default, many minutes. Linux only.
	UserTimeout time.Duration
}

// probes is how many keep-alive probes may stay unanswered.
const probes = 3

func (o Options) keepAlive() net.KeepAliveConfig {
	if o.KeepAlive <= 0 {
		return net.KeepAliveConfig{Enable: true}
	}
	return net.KeepAliveConfig{Enable: true, Idle: o.KeepAlive, Interval: o.KeepAlive, Count: probes}
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
