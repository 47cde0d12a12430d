package relay

import (
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// transfer is read(2) or write(2) on a socket that does not block. It bypasses
// the runtime's bookkeeping for calls that may take long.
func transfer(call uintptr, fd int, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// sockets takes the descriptors of two plain sockets out of their connections,
// which are closed: the runtime does not watch them any more.
func sockets(conns [2]net.Conn) (fds [2]int, ok bool) {
	for i, c := range conns {
		switch c.(type) {
		case *net.TCPConn, *net.UnixConn:
		default:
			return fds, false
		}
		fd, err := duplicate(c)
		if err != nil {
			if i == 1 {
				unix.Close(fds[0])
			}
			return fds, false
		}
		fds[i] = fd
	}
	for _, c := range conns {
		c.Close()
	}
	return fds, true
}

func duplicate(c net.Conn) (fd int, err error) {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return -1, err
	}
	controlErr := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if controlErr != nil {
		return -1, controlErr
	}
	return fd, err
}

// unmake makes connections of descriptors again, which are closed. What a
// connection has been set to stays with the socket, but for keep-alive, which
// package net sets to its default. A descriptor of -1 has none.
func unmake(fds [2]int) (conns [2]net.Conn) {
	for i, fd := range fds {
		if fd < 0 {
			continue
		}
		file := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(file)
		file.Close()
		if err != nil {
			c = brokenConn{err}
		}
		conns[i] = c
	}
	return conns
}

// brokenConn stands for a connection that could not be made again, as when there
// are too many open files.
type brokenConn struct{ err error }

func (c brokenConn) Read([]byte) (int, error)         { return 0, c.err }
func (c brokenConn) Write([]byte) (int, error)        { return 0, c.err }
func (c brokenConn) Close() error                     { return nil }
func (c brokenConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c brokenConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c brokenConn) SetDeadline(time.Time) error      { return c.err }
func (c brokenConn) SetReadDeadline(time.Time) error  { return c.err }
func (c brokenConn) SetWriteDeadline(time.Time) error { return c.err }
