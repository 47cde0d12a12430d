package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// fill writes until nothing goes any more.
func fill(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	for {
		if _, err := c.Write(make([]byte, 64<<10)); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
			break
		}
	}
	c.SetWriteDeadline(time.Time{})
}

func TestWhatWaitsIsThrownAwayAlsoIfTheContextHadEnded(t *testing.T) {
	_, a := tcpPair(t)
	b, server := tcpPair(t)
	fill(t, b)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var counts Counts
	Run(ctx, a, b, &counts)
	server.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := io.Copy(io.Discard, server); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the server got %d bytes and %v, want a reset", n, err)
	}
}

func TestWhatAKilledClientSentIsThrownAway(t *testing.T) {
	client, a := tcpPair(t)
	b, server := tcpPair(t)
	fill(t, b) // the server hangs
	client.(*net.TCPConn).SetLinger(0)
	client.Close()
	var counts Counts
	Run(context.Background(), a, b, &counts)
	// The session is over; now the primary is given up, and then it wakes.
	server.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := io.Copy(io.Discard, server); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the server got %d bytes and %v, want a reset", n, err)
	}
}
