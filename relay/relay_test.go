package relay

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pgfailproxy/internal/memnet"
)

// rig is a relay between a client and a server.
type rig struct {
	client, server net.Conn // the far ends
	counts         Counts
	cancel         context.CancelCauseFunc
	done           chan error
}

type pairer func(testing.TB) (near, far net.Conn)

func unixPair(tb testing.TB) (near, far net.Conn) {
	tb.Helper()
	ln, err := net.Listen("unix", filepath.Join(tb.TempDir(), "s"))
	if err != nil {
		tb.Fatal(err)
	}
	defer ln.Close()
	if near, err = net.Dial("unix", ln.Addr().String()); err != nil {
		tb.Fatal(err)
	}
	if far, err = ln.Accept(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

func memPair(tb testing.TB) (near, far net.Conn) {
	tb.Helper()
	var n memnet.Network
	ln, err := n.Listen("s")
	if err != nil {
		tb.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan net.Conn, 1)
	go func() { c, _ := ln.Accept(); accepted <- c }()
	if near, err = n.Dial(context.Background(), "s"); err != nil {
		tb.Fatal(err)
	}
	far = <-accepted
	return near, far
}

var kinds = map[string]pairer{"tcp": tcpPair, "unix": unixPair, "memory": memPair}

func newRig(tb testing.TB, pair pairer) *rig {
	tb.Helper()
	r := &rig{done: make(chan error, 1)}
	var a, b net.Conn
	r.client, a = pair(tb)
	b, r.server = pair(tb)
	for _, c := range []net.Conn{r.client, r.server} {
		c.SetDeadline(time.Now().Add(10 * time.Second)) // nothing hangs
	}
	var ctx context.Context
	ctx, r.cancel = context.WithCancelCause(context.Background())
	go func() { r.done <- Run(ctx, a, b, &r.counts) }()
	tb.Cleanup(func() { r.cancel(nil); r.client.Close(); r.server.Close() })
	return r
}

func (r *rig) wait(tb testing.TB) error {
	tb.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(10 * time.Second):
		buf := make([]byte, 1<<20)
		tb.Fatalf("the relay does not end:\n%s", buf[:runtime.Stack(buf, true)])
		return nil
	}
}

func each(t *testing.T, test func(t *testing.T, r *rig)) {
	for name, pair := range kinds {
		t.Run(name, func(t *testing.T) { test(t, newRig(t, pair)) })
	}
}

func TestEveryByteArrivesBothWaysInWhateverPieces(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		const total = 5 << 20
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		send := func(c net.Conn, salt uint64) []byte {
			rnd := rand.New(rand.NewPCG(seed, salt))
			sum := sha256.New()
			for left := total; left > 0; {
				piece := make([]byte, min(left, 1+rnd.IntN(1<<(1+rnd.IntN(18)))))
				for i := range piece {
					piece[i] = byte(rnd.Uint32())
				}
				sum.Write(piece)
				if _, err := c.Write(piece); err != nil {
					t.Error(err)
					break
				}
				left -= len(piece)
			}
			c.(interface{ CloseWrite() error }).CloseWrite()
			return sum.Sum(nil)
		}
		sent := make(chan []byte, 2)
		got := make(chan []byte, 2)
		receive := func(c net.Conn) []byte {
			sum := sha256.New()
			if n, err := io.Copy(sum, c); n != total || err != nil {
				t.Errorf("received %d, %v", n, err)
			}
			return sum.Sum(nil)
		}
		back := make(chan []byte, 1)
		go func() { sent <- send(r.client, 1) }()
		go func() { back <- send(r.server, 2) }()
		go func() { got <- receive(r.server) }()
		if there := receive(r.client); !bytes.Equal(there, <-back) {
			t.Error("to the client: not what was sent")
		}
		if !bytes.Equal(<-got, <-sent) {
			t.Error("to the server: not what was sent")
		}
		if err := r.wait(t); err != nil {
			t.Error(err)
		}
		if a, b := r.counts.AToB.Load(), r.counts.BToA.Load(); a != total || b != total {
			t.Errorf("counted %d and %d, want %d", a, b, total)
		}
	})
}

func TestTheEndOfOneSideLeavesTheOtherDirection(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		io.WriteString(r.client, "last question")
		r.client.(interface{ CloseWrite() error }).CloseWrite()
		if all, err := io.ReadAll(r.server); string(all) != "last question" || err != nil {
			t.Fatalf("%q, %v", all, err)
		}
		io.WriteString(r.server, "answer")
		r.server.Close()
		if all, err := io.ReadAll(r.client); string(all) != "answer" || err != nil {
			t.Fatalf("%q, %v", all, err)
		}
		if err := r.wait(t); err != nil {
			t.Error(err)
		}
	})
}

func TestTheEndOfTheContextClosesBothSidesAndIsTheError(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		why := errors.New("given up")
		r.cancel(why)
		if err := r.wait(t); err != why {
			t.Errorf("error %v, want the cause", err)
		}
		for side, c := range map[string]net.Conn{"client": r.client, "server": r.server} {
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s side: %v, want an end", side, err)
			}
		}
	})
}

func TestAContextThatHasEndedMovesNothing(t *testing.T) {
	client, a := tcpPair(t)
	b, server := tcpPair(t)
	io.WriteString(client, "too late")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var counts Counts
	if err := Run(ctx, a, b, &counts); err != context.Canceled {
		t.Error(err)
	}
	if all, _ := io.ReadAll(server); len(all) > 0 {
		t.Errorf("the server got %q", all)
	}
}

func TestAResetOfOneSideEndsTheOther(t *testing.T) {
	r := newRig(t, tcpPair)
	r.server.(*net.TCPConn).SetLinger(0)
	r.server.Close()
	if _, err := r.client.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("client side: %v, want an end", err)
	}
	if err := r.wait(t); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("error %v, want the reset", err)
	}
}

// A server that has what it wants, and closes with the client's last bytes
// unread, resets: no failure, the client is gone already.
func TestAResetAfterTheEndIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, memPair)
		io.WriteString(r.client, "terminate, and the last record of TLS")
		r.client.Close()
		synctest.Wait() // all of it has arrived
		r.server.Close()
		if err := r.wait(t); err != nil {
			t.Errorf("error %v, want none", err)
		}
	})
}

// A client that does not read stops the server from sending, and an end of the
// context ends that write too.
func TestASlowReaderHoldsTheWriterBackAndNotTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, memPair)
		r.server.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := r.server.Write(make([]byte, 10<<20))
		if n == 10<<20 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("wrote %d, %v: nothing held it back", n, err)
		}
		r.cancel(io.ErrClosedPipe)
		synctest.Wait()
		if err := r.wait(t); err != io.ErrClosedPipe {
			t.Error(err)
		}
	})
}

// One side that is killed takes the other with it, also when nobody reads.
func TestAResetEndsAWriterThatWaits(t *testing.T) {
	r := newRig(t, tcpPair)
	stuck := make(chan error, 1)
	go func() {
		for {
			if _, err := r.server.Write(make([]byte, size)); err != nil {
				stuck <- err
				return
			}
		}
	}()
	for last := int64(-1); last <= 0 || last != r.counts.BToA.Load(); time.Sleep(50 * time.Millisecond) { // until every buffer is full
		last = r.counts.BToA.Load()
	}
	r.client.(*net.TCPConn).SetLinger(0)
	r.client.Close()
	if err := r.wait(t); err == nil {
		t.Error("no error after a reset")
	}
	if err := <-stuck; errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the server was not ended")
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc to count descriptors in:", err)
	}
	return len(all)
}

// Also after a bulk transfer, when it would be easy to keep a pipe.
func TestAnIdleSessionHoldsItsTwoDescriptorsOnly(t *testing.T) {
	before := descriptors(t)
	const n = 20
	for range n {
		r := newRig(t, tcpPair)
		const bulk = 300 << 10
		go r.server.Write(make([]byte, bulk))
		if _, err := io.CopyN(io.Discard, r.client, bulk); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(5 * time.Second); r.counts.BToA.Load() < bulk; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("counted %d of %d although all has arrived", r.counts.BToA.Load(), bulk)
			}
		}
	}
	if got := descriptors(t) - before; got != 4*n {
		t.Errorf("%d descriptors for %d sessions, want 2 of the relay and 2 of the test each", got, n)
	}
}

// What was not sent when the context ended must not arrive later, such as when a
// network heals: by then another server is the one.
func TestNothingArrivesAfterTheEnd(t *testing.T) {
	r := newRig(t, tcpPair)
	go func() { // more than all buffers hold: the server does not read
		for {
			if _, err := r.client.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	}()
	deadline := time.Now().Add(10 * time.Second)
	for last := int64(-1); ; time.Sleep(50 * time.Millisecond) {
		now := r.counts.AToB.Load()
		if now == last && now > 0 {
			break // every buffer is full
		}
		if last = now; time.Now().After(deadline) {
			t.Fatal("the buffers do not fill")
		}
	}
	r.cancel(errors.New("given up"))
	r.wait(t)
	n, err := io.Copy(io.Discard, r.server)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the server got %d bytes and %v, want a reset", n, err)
	}
}
