// Package memnet is a network in memory for tests: connections with half-close,
// deadlines and bounded buffers, and the faults of a real network. It does no
// real I/O, so it may be used where time is virtual (testing/synctest).
package memnet

import (
	"context"
	"net"
	"sync"
	"syscall"
)

// Network is a set of hosts by name. The zero value has none.
type Network struct {
	mu    sync.Mutex
	hosts map[string]*host
}

// host is what is known of a name: who listens, and which faults there are.
type host struct {
	mu       sync.Mutex
	cond     *sync.Cond // of mu; signals every change to the faults
	listener *listener
	stalled  bool
	refusing bool
	conns    map[*conn]bool // the ends of both sides
}

func (n *Network) host(name string) *host {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hosts == nil {
		n.hosts = map[string]*host{}
	}
	h := n.hosts[name]
	if h == nil {
		h = &host{conns: map[*conn]bool{}}
		h.cond = sync.NewCond(&h.mu)
		n.hosts[name] = h
	}
	return h
}

// Listen accepts connections to name until the listener is closed.
func (n *Network) Listen(name string) (net.Listener, error) {
	h := n.host(name)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.listener != nil {
		return nil, &net.OpError{Op: "listen", Net: "mem", Addr: addr(name), Err: syscall.EADDRINUSE}
	}
	h.listener = &listener{host: h, name: name, accepted: make(chan net.Conn), done: make(chan struct{})}
	return h.listener, nil
}

// Dial connects to name. Without a listener it is refused; while the host is
// stalled it waits for ctx.
func (n *Network) Dial(ctx context.Context, name string) (net.Conn, error) {
	h := n.host(name)
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "mem", Addr: addr(name), Err: err}
	}
	defer context.AfterFunc(ctx, func() { h.mu.Lock(); h.cond.Broadcast(); h.mu.Unlock() })()
	h.mu.Lock()
	for h.stalled && ctx.Err() == nil {
		h.cond.Wait()
	}
	ln := h.listener
	refused := h.refusing || ln == nil
	h.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return fail(ctx.Err())
	case refused:
		return fail(syscall.ECONNREFUSED)
	}
	near, far := pair(h, name)
	select {
	case ln.accepted <- far:
		return near, nil
	case <-ln.done:
		near.Close()
		far.Close()
		return fail(syscall.ECONNREFUSED)
	case <-ctx.Done():
		near.Close()
		far.Close()
		return fail(ctx.Err())
	}
}

// Stall has the host's bytes vanish into buffers, in both directions, and new
// connections hang: a cut network, or a frozen machine. Heal ends it.
func (n *Network) Stall(name string) { n.setStalled(name, true) }

// Heal delivers again, also what was sent in the meantime.
func (n *Network) Heal(name string) { n.setStalled(name, false) }

func (n *Network) setStalled(name string, stalled bool) {
	h := n.host(name)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stalled = stalled
	h.cond.Broadcast()
}

// Refuse has new connections refused, or not; those that exist go on.
func (n *Network) Refuse(name string, refuse bool) {
	h := n.host(name)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refusing = refuse
}

// Cut resets every connection of the host.
func (n *Network) Cut(name string) {
	h := n.host(name)
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.conns {
		c.reset = true
	}
	clear(h.conns)
	h.cond.Broadcast()
}

// Open returns how many connections to the host are open on at least one side.
func (n *Network) Open(name string) int {
	h := n.host(name)
	h.mu.Lock()
	defer h.mu.Unlock()
	open := 0
	for c := range h.conns {
		if c.near && !(c.closed && c.peer.closed) {
			open++
		}
	}
	return open
}

type listener struct {
	host     *host
	name     string
	accepted chan net.Conn
	done     chan struct{}
	once     sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepted:
		return c, nil
	case <-l.done:
		return nil, &net.OpError{Op: "accept", Net: "mem", Addr: addr(l.name), Err: net.ErrClosed}
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.done)
		l.host.mu.Lock()
		defer l.host.mu.Unlock()
		l.host.listener = nil
	})
	return nil
}

func (l *listener) Addr() net.Addr { return addr(l.name) }

// addr is a name on a Network.
type addr string

func (a addr) Network() string { return "mem" }
func (a addr) String() string  { return string(a) }
