package memnet

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// inBubble runs a test in virtual time, with both ends of a connection to "s".
func inBubble(t *testing.T, test func(t *testing.T, n *Network, near, far net.Conn)) {
	synctest.Test(t, func(t *testing.T) {
		n := &Network{}
		ln, err := n.Listen("s")
		if err != nil {
			t.Fatal(err)
		}
		accepted := make(chan net.Conn, 1)
		go func() {
			c, _ := ln.Accept()
			accepted <- c
		}()
		near, err := n.Dial(t.Context(), "s")
		if err != nil {
			t.Fatal(err)
		}
		far := <-accepted
		test(t, n, near, far)
		ln.Close()
		near.Close()
		far.Close()
		if open := n.Open("s"); open != 0 {
			t.Errorf("%d connections are left", open)
		}
	})
}

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, c net.Conn, want string) {
	t.Helper()
	buf := make([]byte, len(want))
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != want {
		t.Fatalf("read %q, %v, want %q", buf, err, want)
	}
}

func TestHalfCloseLeavesTheOtherDirection(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *Network, near, far net.Conn) {
		write(t, near, "question")
		near.(*conn).CloseWrite()
		if all, err := io.ReadAll(far); string(all) != "question" || err != nil {
			t.Fatalf("%q, %v", all, err)
		}
		write(t, far, "answer")
		read(t, near, "answer")
	})
}

func TestAWriterWaitsForAReaderThatIsSlow(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *Network, near, far net.Conn) {
		near.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := near.Write(make([]byte, 2*capacity))
		if n != capacity || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("wrote %d, %v", n, err)
		}
		near.SetWriteDeadline(time.Time{})
		done := make(chan error, 1)
		go func() { _, err := near.Write(make([]byte, capacity)); done <- err }()
		if _, err := io.CopyN(io.Discard, far, 2*capacity); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

func TestADeadlineEndsAReadExactlyThenAndCanBeMoved(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *Network, near, far net.Conn) {
		began := time.Now()
		near.SetReadDeadline(began.Add(time.Hour))
		go func() {
			time.Sleep(time.Second)
			near.SetReadDeadline(time.Unix(1, 0)) // interrupts
		}()
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != time.Second {
			t.Fatalf("%v after %s", err, time.Since(began))
		}
		near.SetReadDeadline(time.Time{})
		write(t, far, "x")
		read(t, near, "x")
	})
}

func TestAStallDeliversNothingUntilItHeals(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network, near, far net.Conn) {
		n.Stall("s")
		began := time.Now()
		write(t, near, "late")
		near.(*conn).CloseWrite()
		go func() {
			time.Sleep(time.Minute)
			n.Heal("s")
		}()
		if all, err := io.ReadAll(far); string(all) != "late" || err != nil || time.Since(began) != time.Minute {
			t.Fatalf("%q, %v after %s", all, err, time.Since(began))
		}
	})
}

func TestADialToAStalledHostHangs(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network, _, _ net.Conn) {
		n.Stall("s")
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		began := time.Now()
		if _, err := n.Dial(ctx, "s"); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 3*time.Second {
			t.Fatalf("%v after %s", err, time.Since(began))
		}
	})
}

func TestADialThatNobodyAcceptsLeavesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network, _, _ net.Conn) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := n.Dial(ctx, "s"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if open := n.Open("s"); open != 1 {
			t.Errorf("%d connections, want the one of the test", open)
		}
	})
}

func TestACutResetsBothEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network, near, far net.Conn) {
		go func() {
			time.Sleep(time.Second)
			n.Cut("s")
		}()
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
		if _, err := far.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
	})
}

// What makes a last message to a client so easily lost.
func TestACloseWithBytesUnreadResetsThePeer(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *Network, near, far net.Conn) {
		write(t, near, "never read")
		write(t, far, "last words")
		far.Close()
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
	})
}

func TestDialsAreRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, n *Network, near, far net.Conn) {
		if _, err := n.Dial(t.Context(), "nobody"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Error("without a listener:", err)
		}
		n.Refuse("s", true)
		if _, err := n.Dial(t.Context(), "s"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Error("with the fault:", err)
		}
		write(t, near, "goes on")
		read(t, far, "goes on")
	})
}
