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
	"sync"
	"testing"
	"time"
)

// ends are two connections: what is written to one of a pair is read from the
// other.
func ends(t *testing.T, network string) (outer, inner net.Conn) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	outer, err = net.Dial(network, ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	inner, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { outer.Close(); inner.Close() })
	return outer, inner
}

// hidden is a connection of which nothing but net.Conn is known, as TLS is.
type hidden struct{ net.Conn }

func (h hidden) CloseWrite() error { return h.Conn.(*net.TCPConn).CloseWrite() }

// relayed returns a client and a server with a relay between them.
func relayed(t *testing.T, kind string) (client, server net.Conn, counts *Counts, cancel context.CancelCauseFunc, done <-chan error) {
	t.Helper()
	network := "tcp"
	if kind == "unix" {
		network = "unix"
	}
	client, a := ends(t, "tcp")
	server, b := ends(t, network)
	if kind == "hidden" {
		a, b = hidden{a}, hidden{b}
	}
	ctx, cancelCause := context.WithCancelCause(context.Background())
	ended := make(chan error, 1)
	counts = &Counts{}
	go func() { ended <- Run(ctx, a, b, counts) }()
	t.Cleanup(func() { cancelCause(nil) })
	for _, c := range []net.Conn{client, server} {
		c.SetDeadline(time.Now().Add(30 * time.Second)) // no hang outlives the test
	}
	return client, server, counts, cancelCause, ended
}

func forKinds(t *testing.T, test func(t *testing.T, kind string)) {
	for _, kind := range []string{"tcp", "unix", "hidden"} {
		t.Run(kind, func(t *testing.T) { test(t, kind) })
	}
}

// Small and large pieces in both directions at once arrive whole, and in order.
func TestEveryByteArrives(t *testing.T) {
	forKinds(t, func(t *testing.T, kind string) {
		client, server, counts, _, done := relayed(t, kind)
		const size = 20<<20 + 12345
		var wg sync.WaitGroup
		send := func(c net.Conn, seed uint64) [32]byte {
			rng := rand.New(rand.NewPCG(seed, 0))
			data := make([]byte, size)
			for i := range data {
				data[i] = byte(rng.Uint32())
			}
			wg.Go(func() {
				for rest := data; len(rest) > 0; {
					n := min(len(rest), 1+rng.IntN([]int{10, 1000, 1 << 20}[rng.IntN(3)]))
					if _, err := c.Write(rest[:n]); err != nil {
						t.Error(err)
						return
					}
					rest = rest[n:]
				}
				c.(interface{ CloseWrite() error }).CloseWrite()
			})
			return sha256.Sum256(data)
		}
		receive := func(c net.Conn, want [32]byte) {
			wg.Go(func() {
				h := sha256.New()
				n, err := io.Copy(h, c)
				if err != nil || n != size || !bytes.Equal(h.Sum(nil), want[:]) {
					t.Errorf("%d bytes, %v", n, err)
				}
			})
		}
		toServer, toClient := send(client, 1), send(server, 2)
		receive(server, toServer)
		receive(client, toClient)
		wg.Wait()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if counts.AToB.Load() != size || counts.BToA.Load() != size {
			t.Errorf("counted %d and %d, want %d", counts.AToB.Load(), counts.BToA.Load(), size)
		}
	})
}

func TestAnEndIsPassedOnAndTheOtherDirectionGoesOn(t *testing.T) {
	forKinds(t, func(t *testing.T, kind string) {
		client, server, _, _, done := relayed(t, kind)
		io.WriteString(client, "question")
		client.(interface{ CloseWrite() error }).CloseWrite()
		if got, err := io.ReadAll(server); string(got) != "question" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
		io.WriteString(server, "answer")
		server.Close()
		if got, err := io.ReadAll(client); string(got) != "answer" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestCancelEndsBothSidesWithTheCause(t *testing.T) {
	forKinds(t, func(t *testing.T, kind string) {
		client, server, _, cancel, done := relayed(t, kind)
		cause := errors.New("given up")
		cancel(cause)
		if err := <-done; !errors.Is(err, cause) {
			t.Errorf("Run: %v", err)
		}
		for _, c := range []net.Conn{client, server} {
			if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("a side was not ended")
			}
		}
	})
}

// One side that is killed takes the other with it, also when nobody reads.
func TestAResetEndsBothSides(t *testing.T) {
	client, server, _, _, done := relayed(t, "tcp")
	go func() { // fill every buffer
		for {
			if _, err := server.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	}()
	client.Read(make([]byte, 1))
	client.(*net.TCPConn).SetLinger(0)
	client.Close()
	if err := <-done; err == nil {
		t.Error("Run: nil after a reset")
	}
}

// An idle session costs two descriptors, not a pipe for each direction.
func TestAnIdleRelayHoldsNoPipe(t *testing.T) {
	count := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skipf("descriptors cannot be counted here: %v", err)
		}
		return len(all)
	}
	before := count()
	const n = 20
	for range n {
		client, server, _, _, _ := relayed(t, "tcp")
		io.WriteString(client, "hello")
		io.ReadFull(server, make([]byte, 5))
	}
	if got := count() - before; got > 4*n {
		t.Errorf("%d descriptors for %d idle relays and their peers, want %d", got, n, 4*n)
	}
}
