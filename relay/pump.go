package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// grace is how long a write that is under way may take when a pair is handed
// back: TLS does not survive one that is interrupted.
const grace = time.Second

// longPast is a deadline that interrupts what is being read.
var longPast = time.Unix(1, 0)

// pumps carry a flow with a goroutine for each direction.
type pumps struct {
	flow *Flow
	conn [2]net.Conn
	left sync.WaitGroup // of the two

	mu          sync.Mutex // the flow's
	changes     sync.Cond  // of mu: Stop was called, or the flow is over
	interrupted bool
}

func startPumps(f *Flow, p Pair) {
	c := &pumps{flow: f, conn: p.Conn}
	c.changes.L = &c.mu
	f.carrier, f.mu = c, &c.mu
	c.mu.Lock()
	defer c.mu.Unlock()
	f.begin(p)
	c.left.Add(2)
	go c.pumpFirst()
	go c.pump(B)
}

// pumpFirst pumps one direction, and hands the pair back when both are done.
func (c *pumps) pumpFirst() {
	c.pump(A)
	c.left.Wait()
	for s, conn := range c.conn {
		if c.flow.reason == WasCut && Side(s) == B {
			c.conn[s] = nil
			continue
		}
		conn.SetDeadline(time.Time{})
	}
	c.flow.handBack(Pair{Conn: c.conn})
}

// pump moves one direction until the flow is over, or the direction is.
func (c *pumps) pump(from Side) {
	defer c.left.Done()
	in := newSource(c.conn[from])
	defer in.release()
	f := c.flow
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.settled()
	for !f.over {
		w := &f.ways[from]
		switch {
		case f.writes(from.Other()):
			c.write(from, w.unwritten)
		case f.passesEnd(from):
			c.mu.Unlock()
			err := closeWrite(c.conn[from.Other()])
			c.mu.Lock()
			f.passed(from, err)
		case w.shut:
			return
		case !f.reads(from): // it stops, and waits for the other direction
			c.changes.Wait()
		default:
			c.read(from, in)
		}
		c.settled()
	}
}

// read reads once and writes what may go on.
func (c *pumps) read(from Side, in *source) {
	f := c.flow
	kept := f.ways[from].kept // nobody else changes it
	c.mu.Unlock()
	p, err := in.read(kept)
	c.mu.Lock()
	if len(p) > len(kept) {
		if pass := f.take(from, p); len(pass) > 0 {
			c.settled()
			c.write(from, pass)
		}
	}
	switch {
	case err == nil, errors.Is(err, os.ErrDeadlineExceeded):
	case err == io.EOF:
		f.ended(from, nil)
	default:
		f.ended(from, err)
	}
}

// write writes p without the lock.
func (c *pumps) write(from Side, p []byte) {
	c.mu.Unlock()
	n, err := c.conn[from.Other()].Write(p)
	c.mu.Lock()
	if c.flow.over && errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil // we did that
	}
	c.flow.wrote(from, p, n, err)
}

// settled wakes the other direction when the flow is over. The lock is held.
func (c *pumps) settled() {
	if !c.flow.over || c.interrupted {
		return
	}
	c.interrupted = true
	c.changes.Broadcast()
	for _, conn := range c.conn {
		conn.SetReadDeadline(longPast)
		conn.SetWriteDeadline(time.Now().Add(grace))
	}
}

func (c *pumps) changed() {
	c.settled()
	c.changes.Broadcast()
	for s, conn := range c.conn {
		if !c.flow.over && c.flow.ways[s].whole() {
			conn.SetReadDeadline(longPast)
		}
	}
}

func (c *pumps) cut() {
	resetClose(c.conn[B])
	c.settled()
}

// small is what is read into while nothing may come for long, where a buffer is
// needed to wait.
const small = 512

// source reads from a connection. Where the system can say that nothing is
// there, it waits without a buffer.
type source struct {
	conn  net.Conn
	raw   syscall.RawConn    // nil where it has to hold a buffer while it waits
	try   func(uintptr) bool // attempt, made once
	small []byte
	more  bool // the last read was full

	keep []byte  // what a read is to begin with
	buf  *buffer // taken from the pool; given back before the next read
	kept int     // bytes at its beginning
	n    int     // the result of an attempt
	err  error
}

func newSource(c net.Conn) *source {
	s := &source{conn: c}
	if sc, ok := c.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			s.raw, s.try = raw, s.attempt
			return s
		}
	}
	s.small = make([]byte, small)
	return s
}

func (s *source) release() {
	if s.buf != nil {
		readBuffers.Put(s.buf)
		s.buf = nil
	}
}

// take gets a buffer that begins with kept.
func (s *source) take(kept []byte) {
	if s.buf == nil {
		s.buf = readBuffers.Get().(*buffer)
	}
	s.kept = copy(s.buf[:], kept)
}

// read waits for bytes and returns them after kept, in a buffer that is good
// until the next call. The error, io.EOF at the end, may come with bytes.
func (s *source) read(kept []byte) ([]byte, error) {
	if s.raw == nil {
		return s.readInto(kept)
	}
	s.release()
	s.keep, s.n, s.err = kept, 0, nil
	err := s.raw.Read(s.try)
	switch {
	case err != nil: // a deadline, or closed
		return nil, err
	case s.err != nil:
		return nil, opError("read", s.err)
	case s.n == 0:
		return nil, io.EOF
	}
	return s.buf[:s.kept+s.n], nil
}

// attempt reads once, and reports whether that had a result: false has the
// runtime wait until there is something.
func (s *source) attempt(fd uintptr) bool {
	s.take(s.keep)
	for {
		s.n, s.err = syscall.Read(int(fd), s.buf[s.kept:s.kept+chunk])
		if s.err != syscall.EINTR {
			break
		}
	}
	if s.err == syscall.EAGAIN {
		s.release()
		return false
	}
	return true
}

// readInto reads into a small buffer, and into a large one while that was full.
func (s *source) readInto(kept []byte) ([]byte, error) {
	var n int
	var err error
	if s.more {
		s.take(kept)
		n, err = s.conn.Read(s.buf[s.kept : s.kept+chunk])
		s.more = n >= small
	} else {
		s.release()
		n, err = s.conn.Read(s.small)
		s.more = n == small
		s.take(kept)
		copy(s.buf[s.kept:], s.small[:n])
	}
	p := s.buf[:s.kept+n]
	if err != nil && err != io.EOF && !errors.Is(err, os.ErrDeadlineExceeded) {
		err = opError("read", err)
	}
	return p, err
}

func opError(op string, err error) error {
	var o *net.OpError
	if errors.As(err, &o) {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Err: err}
}

// closeWrite tells c that nothing more comes. Where only all of c can be closed,
// that is done, and ends the other direction too.
func closeWrite(c net.Conn) error {
	h, ok := c.(interface{ CloseWrite() error })
	if !ok {
		return c.Close()
	}
	err := h.CloseWrite()
	if errors.Is(err, syscall.ENOTCONN) {
		return nil // it is gone altogether, and its own direction says so
	}
	return err
}
