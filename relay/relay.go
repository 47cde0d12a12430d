// Package relay moves bytes between two connections. It knows nothing of what
// they mean.
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

const (
	// small is the buffer that is taken when bytes arrive: most messages of a
	// session fit, and an idle session has none.
	small = 16 << 10
	// chunk is how much of a bulk transfer the kernel may move before it is
	// counted.
	chunk = 1 << 20
)

var buffers = sync.Pool{New: func() any { return new([small]byte) }}

// Counts are the bytes moved so far, and may be read at any time.
type Counts struct{ AToB, BToA atomic.Int64 }

// Run moves bytes between a and b, both ways, until both have ended, one has
// failed, or ctx ends; then it closes both and returns. An end of one side is
// passed on as such and the other direction goes on. The error is ctx's cause,
// the first failure, or nil when both ended.
func Run(ctx context.Context, a, b net.Conn, counts *Counts) error {
	cut := context.AfterFunc(ctx, func() { a.Close(); b.Close() })
	defer cut()
	errs := make(chan error, 2)
	go pump(b, a, &counts.AToB, errs)
	go pump(a, b, &counts.BToA, errs)
	first := <-errs
	if first != nil {
		a.Close()
		b.Close()
	}
	second := <-errs
	a.Close()
	b.Close()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(first, second)
}

// pump moves bytes one way until src ends, then tells dst so.
func pump(dst, src net.Conn, count *atomic.Int64, done chan<- error) {
	err := move(dst, src, count)
	if err == nil {
		err = closeWrite(dst)
	}
	if errors.Is(err, net.ErrClosed) {
		err = nil // the other direction has failed, and told why
	}
	done <- err
}

func move(dst, src net.Conn, count *atomic.Int64) error {
	in := newSource(src)
	for {
		buf, n, err := in.read()
		if n > 0 {
			w, werr := dst.Write(buf[:n])
			count.Add(int64(w))
			if werr != nil {
				err = werr
			}
		}
		if buf != nil {
			buffers.Put(buf)
		}
		if err == nil && n == small {
			err = moveBulk(dst, src, count)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// moveBulk has the kernel move up to a chunk (splice on Linux), or what comes.
func moveBulk(dst, src net.Conn, count *atomic.Int64) error {
	r, ok := dst.(io.ReaderFrom)
	if !ok {
		return nil
	}
	n, err := r.ReadFrom(&io.LimitedReader{R: src, N: chunk})
	count.Add(n)
	if err == nil && n < chunk {
		return io.EOF
	}
	return err
}

// source reads from a connection. Where the system can say that nothing is
// there, it waits without a buffer.
type source struct {
	conn net.Conn
	raw  syscall.RawConn // nil where it has to hold a buffer while it waits
	buf  *[small]byte
	n    int
	err  error
}

func newSource(c net.Conn) *source {
	s := &source{conn: c}
	if sc, ok := c.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			s.raw = raw
		}
	}
	return s
}

// read waits for bytes and returns them in a buffer, which the caller puts back
// if it is not nil. It returns io.EOF at the end.
func (s *source) read() (*[small]byte, int, error) {
	if s.raw == nil {
		buf := buffers.Get().(*[small]byte)
		n, err := s.conn.Read(buf[:])
		return buf, n, err
	}
	s.buf, s.n, s.err = nil, 0, nil
	if err := s.raw.Read(s.try); err != nil {
		return s.buf, 0, err
	}
	if s.err == nil && s.n == 0 {
		s.err = io.EOF
	}
	return s.buf, max(s.n, 0), s.err
}

// try reads once, and reports whether that had a result: false has the runtime
// wait until there is something.
func (s *source) try(fd uintptr) bool {
	s.buf = buffers.Get().(*[small]byte)
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

func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		err := h.CloseWrite()
		if errors.Is(err, syscall.ENOTCONN) {
			return nil // it is gone altogether
		}
		return err
	}
	return c.Close()
}
