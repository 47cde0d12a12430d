package tcp

import (
	"errors"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func setUserTimeout(raw syscall.RawConn, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	var set error
	err := raw.Control(func(fd uintptr) {
		ms := (d + time.Millisecond - 1) / time.Millisecond // rounded up: 0 would mean the default
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(ms))
	})
	return errors.Join(err, set)
}
