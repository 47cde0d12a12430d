package tcp

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// option reads a TCP option of c from the kernel.
func option(t *testing.T, c net.Conn, name int) int {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var value int
	var failed error
	if err := raw.Control(func(fd uintptr) { value, failed = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, name) }); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	return value
}

// connect returns both ends of a connection, the near one dialled with o.
func connect(t *testing.T, o Options, network, address string) (near, far net.Conn) {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	near, err = o.Dialer().DialContext(context.Background(), network, ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

func TestBothSidesGetTheOptions(t *testing.T) {
	o := Options{KeepAlive: 7 * time.Second, UserTimeout: 1500*time.Millisecond + 1}
	near, far := connect(t, o, "tcp", "127.0.0.1:0")
	if err := o.Apply(far); err != nil {
		t.Fatal(err)
	}
	for side, c := range map[string]net.Conn{"dialled": near, "accepted": far} {
		for _, want := range []struct {
			name          string
			option, value int
		}{
			{"idle", unix.TCP_KEEPIDLE, 7},
			{"interval", unix.TCP_KEEPINTVL, 7},
			{"count", unix.TCP_KEEPCNT, probes},
			{"user time-out in ms", unix.TCP_USER_TIMEOUT, 1501},
		} {
			if got := option(t, c, want.option); got != want.value {
				t.Errorf("%s side: %s is %d, want %d", side, want.name, got, want.value)
			}
		}
	}
}

func TestZeroLeavesTheDefaults(t *testing.T) {
	near, far := connect(t, Options{}, "tcp", "127.0.0.1:0")
	if err := (Options{}).Apply(far); err != nil {
		t.Fatal(err)
	}
	for side, c := range map[string]net.Conn{"dialled": near, "accepted": far} {
		if got := option(t, c, unix.TCP_USER_TIMEOUT); got != 0 {
			t.Errorf("%s side: user time-out is %d ms, want the system's default", side, got)
		}
		if got := option(t, c, unix.TCP_KEEPIDLE); got != 15 {
			t.Errorf("%s side: idle is %d s, want 15 as in package net", side, got)
		}
	}
}

func TestUnixSocketsAreLeftAlone(t *testing.T) {
	o := Options{KeepAlive: time.Second, UserTimeout: time.Second}
	_, far := connect(t, o, "unix", filepath.Join(t.TempDir(), "s"))
	if err := o.Apply(far); err != nil {
		t.Error(err)
	}
}
