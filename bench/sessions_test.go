package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgfailproxy/cluster"
	"pgfailproxy/health"
)

// startFakeHere serves in this process until the test ends, and returns the port.
func startFakeHere(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- serveFake(ln) }()
	t.Cleanup(func() {
		ln.Close()
		<-done
	})
	return ln.Addr().(*net.TCPAddr).Port
}

func TestTheServerThatDoesNothingPassesForAPrimary(t *testing.T) {
	port := startFakeHere(t)
	config, err := pgconn.ParseConfig(connString(port))
	if err != nil {
		t.Fatal(err)
	}
	o := health.Once(t.Context(), "pg1", config, 10*time.Second)
	if o.Role != cluster.RolePrimary || o.System == 0 || o.Position.Timeline != 1 {
		t.Errorf("got %+v", o)
	}
}

func TestACrowdGrowsWorksAndLeaves(t *testing.T) {
	port := startFakeHere(t)
	var all crowd
	for _, n := range []int{1, 30} {
		if err := all.grow(t.Context(), port, n); err != nil || len(all) != n {
			t.Fatalf("%d sessions, %v, want %d", len(all), err, n)
		}
	}
	done, err := all.work(t.Context(), 100*time.Millisecond)
	if err != nil || done.count < active || done.rate <= 0 || done.p99 <= 0 {
		t.Errorf("got %+v, %v", done, err)
	}
	all.leave()
	if done, err := all.work(t.Context(), time.Second); err == nil {
		t.Errorf("sessions that have left did %+v", done)
	}
}

func TestACrowdThatCannotGrowSaysWhy(t *testing.T) {
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	var all crowd
	if err := all.grow(t.Context(), port, 3); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody listens, and the error is %v", err)
	}
}

func TestNoMoreSessionsAreTriedThanThereAreFilesFor(t *testing.T) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	got, err := fit([]int{1, 10, 1 << 40, 1 << 41})
	if err != nil || len(got) != 3 || !slices.Equal(got[:2], []int{1, 10}) || uint64(2*got[2]) >= limit.Max {
		t.Errorf("got %v, %v with a limit of %d files", got, err, limit.Max)
	}
}

func TestTheMemoryOfAProcessIsRead(t *testing.T) {
	p, err := startProcess(t.TempDir(), "quiet", "/bin/sleep", "60")
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	ready := func(context.Context) error { // it becomes sleep in a moment
		if got, err := p.resident(); err != nil || got < 100<<10 || got > 100<<20 {
			return fmt.Errorf("sleep has %d bytes, %v", got, err)
		}
		return nil
	}
	if err := await(t.Context(), 10*time.Second, ready); err != nil {
		t.Error(err)
	}
	p.stop()
	if got, err := p.resident(); err == nil {
		t.Errorf("a process that has ended has %d bytes", got)
	}
}
