package relay

import (
	"net"
	"runtime"
	"sync"
	"sync/atomic"
)

// Mover moves the bytes of many pairs.
type Mover struct {
	moved [2]atomic.Int64
	most  int

	mu    sync.Mutex // guards what follows
	loops []*loop    // each is made when it is first needed
	next  int
}

// NewMover returns a mover with at most so many event loops. 0 means one for each
// processor of the runtime but one, at least one: a loop keeps its processor, and
// with none left for other goroutines these would have to take it away each time.
// Nothing runs until the first pair.
func NewMover(loops int) *Mover {
	if loops <= 0 {
		loops = max(1, runtime.GOMAXPROCS(0)-1)
	}
	return &Mover{most: loops}
}

// Start moves a pair, which the mover owns until done is called: once, in a
// goroutine of its own. Without a watcher everything passes, ends too.
func (m *Mover) Start(p Pair, w Watcher, done func(Result)) *Flow {
	f := &Flow{mover: m, watcher: w, done: done}
	if fds, ok := sockets(p.Conn); ok {
		if l := m.loop(); l != nil {
			l.start(f, p, fds)
			return f
		}
		p.Conn = unmake(fds)
	}
	startPumps(f, p)
	return f
}

// loop returns the next loop in turn, nil if none can be made.
func (m *Mover) loop() *loop {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.loops) < m.most {
		l, err := newLoop()
		if err == nil {
			m.loops = append(m.loops, l)
			return l
		}
		if len(m.loops) == 0 {
			return nil // pumps do as well
		}
	}
	m.next++
	return m.loops[m.next%len(m.loops)]
}

// Moved returns the bytes written so far to B and to A, of all flows.
func (m *Mover) Moved() (aToB, bToA int64) { return m.moved[A].Load(), m.moved[B].Load() }

// Close ends the mover. All flows must be done.
func (m *Mover) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.loops {
		l.close()
	}
	m.loops = nil
}

// resetClose closes a connection so that what still waits to be sent is thrown
// away.
func resetClose(c net.Conn) {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok { // TLS: without a last record
		c = t.NetConn()
	}
	if l, ok := c.(interface{ SetLinger(seconds int) error }); ok {
		l.SetLinger(0)
	}
	c.Close()
}
