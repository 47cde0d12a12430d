package memnet

import (
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// capacity is how many bytes may be on their way in one direction.
const capacity = 64 << 10

// conn is one end of a connection. All of its fields are guarded by host.mu:
// tests have few connections, and one lock is easy to be right about.
type conn struct {
	host *host
	name string
	near bool // the end of who dialled
	peer *conn

	in       []byte // arrived or on its way here
	ended    bool   // peer will write no more
	closed   bool
	reset    bool
	readBy   deadline
	writeBy  deadline
	shutdown bool // CloseWrite was called
}

// deadline is a time that wakes its waiters.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func pair(h *host, name string) (near, far *conn) {
	near, far = &conn{host: h, name: name, near: true}, &conn{host: h, name: name}
	near.peer, far.peer = far, near
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns[near], h.conns[far] = true, true
	return near, far
}

func (c *conn) fail(op string, err error) error {
	return &net.OpError{Op: op, Net: "mem", Addr: addr(c.name), Err: err}
}

func (c *conn) Read(p []byte) (int, error) {
	c.host.mu.Lock()
	defer c.host.mu.Unlock()
	for {
		switch {
		case c.closed:
			return 0, c.fail("read", net.ErrClosed)
		case c.reset:
			return 0, c.fail("read", syscall.ECONNRESET)
		case c.readBy.passed():
			return 0, c.fail("read", os.ErrDeadlineExceeded)
		case len(p) == 0:
			return 0, nil
		case len(c.in) > 0 && !c.host.stalled:
			n := copy(p, c.in)
			c.in = c.in[n:]
			c.host.cond.Broadcast()
			return n, nil
		case c.ended && !c.host.stalled:
			return 0, io.EOF
		}
		c.host.cond.Wait()
	}
}

func (c *conn) Write(p []byte) (n int, err error) {
	c.host.mu.Lock()
	defer c.host.mu.Unlock()
	for {
		switch {
		case c.closed || c.shutdown:
			return n, c.fail("write", net.ErrClosed)
		case c.reset:
			return n, c.fail("write", syscall.ECONNRESET)
		case c.writeBy.passed():
			return n, c.fail("write", os.ErrDeadlineExceeded)
		case c.peer.closed && !c.host.stalled:
			return n, c.fail("write", syscall.EPIPE)
		case len(p) == 0:
			return n, nil
		}
		if room := capacity - len(c.peer.in); room > 0 {
			k := min(room, len(p))
			c.peer.in = append(c.peer.in, p[:k]...)
			n, p = n+k, p[k:]
			c.host.cond.Broadcast()
			continue
		}
		c.host.cond.Wait()
	}
}

// Close ends both directions. The peer reads what was sent, then the end; but if
// something was not read here, the peer is reset and loses what it has not read
// either, as TCP does.
func (c *conn) Close() error {
	c.host.mu.Lock()
	defer c.host.mu.Unlock()
	if c.closed {
		return c.fail("close", net.ErrClosed)
	}
	c.closed, c.peer.ended = true, true
	if len(c.in) > 0 && !c.host.stalled {
		c.peer.reset = true
	}
	for _, d := range []*deadline{&c.readBy, &c.writeBy} {
		if d.timer != nil {
			d.timer.Stop()
		}
	}
	if c.peer.closed {
		delete(c.host.conns, c)
		delete(c.host.conns, c.peer)
	}
	c.host.cond.Broadcast()
	return nil
}

// CloseWrite ends the direction to the peer only.
func (c *conn) CloseWrite() error {
	c.host.mu.Lock()
	defer c.host.mu.Unlock()
	if c.closed {
		return c.fail("close", net.ErrClosed)
	}
	c.shutdown, c.peer.ended = true, true
	c.host.cond.Broadcast()
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return addr(c.name) }
func (c *conn) RemoteAddr() net.Addr { return addr(c.name) }

func (c *conn) SetDeadline(t time.Time) error {
	c.setDeadline(&c.readBy, t)
	return c.setDeadline(&c.writeBy, t)
}
func (c *conn) SetReadDeadline(t time.Time) error  { return c.setDeadline(&c.readBy, t) }
func (c *conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(&c.writeBy, t) }

func (c *conn) setDeadline(d *deadline, t time.Time) error {
	h := c.host
	h.mu.Lock()
	defer h.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = t
	if !t.IsZero() && time.Until(t) > 0 {
		d.timer = time.AfterFunc(time.Until(t), func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.cond.Broadcast()
		})
	}
	h.cond.Broadcast()
	return nil
}
