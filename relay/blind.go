package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// size is that of the buffer that is taken when bytes arrive, and given back
// when they are written. A message of a session fits, a bulk transfer fills it:
// at this size copying costs no more than splicing, which would keep a pipe in
// each direction, two descriptors, for as long as it waits.
const size = 64 << 10

var buffers = sync.Pool{New: func() any { return new([size]byte) }}

// Counts are the bytes moved so far, and may be read at any time.
type Counts struct{ AToB, BToA atomic.Int64 }

// Run moves bytes between a and b, both ways, until both have ended, one has
// failed, or ctx ends; then it closes both and returns. An end of one side is
// passed on as such and the other direction goes on. The error is ctx's cause,
// the first failure, or nil when both ended. A reset by one side after the other
// has ended is an end too: so ends a server that closes before it has read the
// last record of its client's TLS.
//
// When ctx ends, b gets nothing more: what still waits to be sent to it, perhaps
// until a broken network heals, is thrown away.
func Run(ctx context.Context, a, b net.Conn, counts *Counts) error {
	r := &relay{a: a, b: b, back: make(chan struct{})}
	defer r.close()
	if ctx.Err() != nil { // not a byte more
		r.cut()
		return context.Cause(ctx)
	}
	defer context.AfterFunc(ctx, r.cut)()
	go r.pumpBack(&counts.BToA)
	r.pump(b, a, &counts.AToB) // one goroutine less for each session
	<-r.back
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return r.err
}

type relay struct {
	a, b net.Conn
	back chan struct{} // closed when pumpBack has returned

	ended   atomic.Bool // at least one side
	failure sync.Once
	err     error // the first failure
}

// cut closes both sides, b with a reset.
func (r *relay) cut() {
	if b, ok := r.b.(interface{ SetLinger(seconds int) error }); ok {
		b.SetLinger(0)
	}
	r.close()
}

func (r *relay) close() {
	r.a.Close()
	r.b.Close()
}

func (r *relay) pumpBack(count *atomic.Int64) {
	defer close(r.back)
	r.pump(r.a, r.b, count)
}

// pump moves bytes one way until src ends, then tells dst so. A failure ends the
// other direction too.
func (r *relay) pump(dst, src net.Conn, count *atomic.Int64) {
	err := move(dst, src, count)
	if err == io.EOF {
		r.ended.Store(true)
		err = closeWrite(dst)
	}
	if err == nil {
		return
	}
	if r.ended.Load() && (errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)) {
		err = nil
	}
	r.failure.Do(func() { r.err = err })
	r.cut()
}

// move moves bytes one way. It always returns an error, io.EOF when src ended.
func move(dst, src net.Conn, count *atomic.Int64) error {
	in := newSource(src)
	for {
		buf, n, err := in.read()
		if n > 0 {
			w, failed := dst.Write(buf[:n])
			count.Add(int64(w))
			if failed != nil {
				err = failed
			}
		}
		if buf != nil {
			buffers.Put(buf)
		}
		if err != nil {
			return err
		}
	}
}

// source reads from a connection. Where the system can say that nothing is
// there, it waits without a buffer.
type source struct {
	conn    net.Conn
	raw     syscall.RawConn    // nil where it has to hold a buffer while it waits
	attempt func(uintptr) bool // try, made once

	// The result of try.
	buf *[size]byte
	n   int
	err error
}

func newSource(c net.Conn) *source {
	s := &source{conn: c}
	if sc, ok := c.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			s.raw, s.attempt = raw, s.try
		}
	}
	return s
}

// read waits for bytes and returns them in a buffer, which the caller puts back
// if it is not nil. It returns io.EOF at the end.
func (s *source) read() (*[size]byte, int, error) {
	if s.raw == nil {
		buf := buffers.Get().(*[size]byte)
		n, err := s.conn.Read(buf[:])
		return buf, n, err
	}
	s.buf, s.n, s.err = nil, 0, nil
	if err := s.raw.Read(s.attempt); err != nil {
		return s.buf, 0, err
	}
	switch {
	case s.err != nil:
		return s.buf, 0, &net.OpError{Op: "read", Net: s.conn.RemoteAddr().Network(), Addr: s.conn.RemoteAddr(), Err: s.err}
	case s.n == 0:
		return s.buf, 0, io.EOF
	}
	return s.buf, s.n, nil
}

// try reads once, and reports whether that had a result: false has the runtime
// wait until there is something.
func (s *source) try(fd uintptr) bool {
	s.buf = buffers.Get().(*[size]byte)
	for {
		s.n, s.err = syscall.Read(int(fd), s.buf[:])
		if s.err != syscall.EINTR {
			break
		}
	}
	if s.err == syscall.EAGAIN {
		buffers.Put(s.buf)
		s.buf = nil
		return false
	}
	return true
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
