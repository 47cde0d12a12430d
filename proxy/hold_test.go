package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pgfailproxy/cluster"
	"pgfailproxy/pgwire"
)

func TestHeldClientsAreLetGoInTheOrderInWhichTheyCame(t *testing.T) {
	inBubble(t, func(_ *Options, r *RouterOptions) { r.ReleaseRate = 10 }, func(b *bubble) {
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		var clients []*client
		for i := range 30 {
			c := b.connect()
			synctest.Wait() // it stands in line
			clients = append(clients, c)
			wg.Go(func() {
				c.want(string(authOK))
				mu.Lock()
				defer mu.Unlock()
				order = append(order, i)
			})
		}
		b.verify()
		wg.Wait()
		if !slices.IsSorted(order) {
			t.Errorf("served in the order %v", order)
		}
		for _, c := range clients {
			c.Close()
		}
	})
}

// Also those at the end of the line see a second failover, and each is answered
// in time whatever the rate.
func TestEveryHeldClientIsAnsweredWithinTheHoldTimeout(t *testing.T) {
	inBubble(t, func(_ *Options, r *RouterOptions) { r.ReleaseRate = 1 }, func(b *bubble) {
		began := time.Now()
		var wg sync.WaitGroup
		var mu sync.Mutex
		served := 0
		for range 50 {
			c := b.connect()
			wg.Go(func() {
				defer c.Close()
				kind, raw, err := pgwire.ReadMessage(c)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err != nil:
					t.Error(err)
				case kind == 'R':
					served++
				case pgwire.SQLState(raw) != "57P03":
					t.Errorf("%q", raw)
				}
				if took := time.Since(began); took > 30*time.Second {
					t.Errorf("answered after %s", took)
				}
			})
		}
		time.Sleep(10 * time.Second)
		b.verify()
		time.Sleep(5*time.Second + time.Millisecond)
		b.giveUp()
		time.Sleep(5 * time.Second)
		b.succeed()
		wg.Wait()
		// One at once and one a second for 5 s; the second time a full token was
		// saved up, and 10 s are left, the last one of them too late.
		if served < 15 || served > 17 {
			t.Errorf("%d served", served)
		}
	})
}

// Time that goes into an attempt which hangs is time that the client waits.
func TestTheHoldTimeoutCountsFromTheFirstAttempt(t *testing.T) {
	inBubble(t, func(o *Options, _ *RouterOptions) { o.ConnectTimeout = 20 * time.Second }, func(b *bubble) {
		b.verify()
		b.net.Stall("pg1")
		began := time.Now()
		b.connect().wantFatal("57P03", "Waited 30s")
		if took := time.Since(began); took != 30*time.Second {
			t.Errorf("told after %s", took)
		}
		b.net.Heal("pg1")
	})
}

// The server that answered 'N' is given up before the client goes on: it gets
// not a byte more.
func TestAServerThatIsGivenUpAfterItRefusedTLSGetsNoStartupPacket(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		more := make(chan []byte, 1)
		b.answer["pg1"] = func(c net.Conn) {
			defer c.Close()
			io.ReadFull(c, make([]byte, 8))
			c.Write([]byte{'N'})
			all, _ := io.ReadAll(c)
			more <- all
		}
		b.verify()
		c := b.dial()
		c.send(requestPacket(sslRequest))
		c.want("N")
		b.giveUp()
		c.send(startupPacket("alice"))
		synctest.Wait()
		if s := b.server.Stats(); s.Held != 1 {
			t.Errorf("%+v, want one held", s)
		}
		b.succeed()
		c.wantServed() // in plain, and without a second request
		if all := <-more; len(all) > 0 {
			t.Errorf("the server that was given up got %q", all)
		}
	})
}

func TestBytesThatComeWhileARequestForTLSIsHeldAreRefused(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		c := b.dial()
		c.send(requestPacket(sslRequest))
		synctest.Wait()
		c.send([]byte("select"))
		synctest.Wait() // it has arrived
		b.verify()
		c.wantFatal("08P01", "unencrypted data")
	})
}

// What a client says too early is kept for the server, and does not hide that
// the client leaves.
func TestAHeldClientThatSpokeIsStillSeenToLeave(t *testing.T) {
	hello := append([]byte{0x16, 3, 1}, bytes.Repeat([]byte("hello "), 300)...)
	inBubble(t, nil, func(b *bubble) {
		leaver, stayer := b.dial(), b.dial()
		for _, c := range []*client{leaver, stayer} {
			c.send(hello[:100])
			synctest.Wait()
			c.send(hello[100:])
		}
		synctest.Wait()
		leaver.Close()
		synctest.Wait()
		if s := b.server.Stats(); s.Held != 1 || s.Open != 1 {
			t.Errorf("%+v, want one", s)
		}
		b.answer["pg1"] = func(c net.Conn) { io.Copy(c, c); c.Close() }
		b.verify()
		stayer.want(string(hello))
		stayer.Close()
	})
}

// One that does not stop talking costs its buffer and no more.
func TestAHeldClientIsNotReadBeyondItsBuffer(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		c := b.connect()
		c.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := c.Write(make([]byte, 1<<20))
		if err == nil || n > 100<<10 {
			t.Errorf("%d bytes were taken, %v", n, err)
		}
		c.Close()
		time.Sleep(time.Minute)
	})
}

func TestShutdownDoesNotWaitForClientsThatSaidNothing(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		b.verify()
		silent := b.dial()
		slow := b.dial()
		slow.send(startupPacket("alice")[:9])
		synctest.Wait()
		began := time.Now()
		done := make(chan error, 1)
		go func() { done <- b.server.Shutdown(context.Background()) }()
		silent.wantFatal("57P03", "shutting down")
		slow.wantFatal("57P03", "shutting down")
		if err := <-done; err != nil || time.Since(began) != 0 {
			t.Errorf("Shutdown: %v after %s", err, time.Since(began))
		}
	})
}

func TestAHeldClientThatAskedForTLSIsToldOfAShutdown(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		c := b.dial()
		c.send(requestPacket(sslRequest))
		synctest.Wait()
		done := make(chan error, 1)
		go func() { done <- b.server.Shutdown(context.Background()) }()
		c.want("N")
		c.send(startupPacket("alice"))
		c.wantFatal("57P03", "shutting down")
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestAFailoverIsOneLineInTheLog(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		b.verify()
		for range 5 {
			c := b.connect()
			defer c.Close()
			c.wantServed()
		}
		b.connect().Close() // one that ends by itself
		synctest.Wait()
		b.giveUp()
		synctest.Wait()
		if got := b.log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "member=pg1 epoch=1 sessions=5") {
			t.Errorf("log:\n%s", got)
		}
	})
}

// A route that is opened again as it was is the same: who waits for a change
// of it, before a next attempt, goes on waiting.
func TestOpeningTheSameRouteChangesNothing(t *testing.T) {
	pg1 := cluster.Addr{Network: "mem", Address: "pg1"}
	r := NewRouter(RouterOptions{})
	r.Apply(cluster.Record{Revision: 1, Epoch: 1, Primary: "pg1"})
	r.Open(1, pg1)
	first, _ := r.Current()
	changed := r.changed(first)
	r.Open(1, pg1)
	if again, _ := r.Current(); again != first {
		t.Error("another route")
	}
	select {
	case <-changed:
		t.Error("a change was told")
	default:
	}
	r.Open(1, cluster.Addr{Network: "mem", Address: "pg1-moved"})
	<-changed
	if first.Context().Err() != nil {
		t.Error("the member's new address ended its sessions")
	}
}

// While routes come and go, whoever is woken by the end of one finds a newer
// state: never the one that ended.
func TestWhoIsWokenFindsTheNewer(t *testing.T) {
	r := NewRouter(RouterOptions{})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				route, err := r.Await(ctx)
				if err != nil {
					return
				}
				select {
				case <-route.Context().Done():
				case <-ctx.Done():
					return
				}
				if now, _ := r.Current(); now == route {
					t.Error("an ended route is still the present one")
				}
			}
		})
	}
	rec := cluster.Record{Primary: "pg1"}
	for range 500 {
		rec.Revision, rec.Epoch, rec.Held = rec.Revision+1, rec.Epoch+1, true
		r.Apply(rec)
		rec.Revision, rec.Held = rec.Revision+1, false
		r.Apply(rec)
		r.Open(rec.Epoch, cluster.Addr{Network: "mem", Address: "pg1"})
	}
	cancel()
	wg.Wait()
}

// failing is a listener that cannot accept for a while.
type failing struct {
	net.Listener
	errs chan error
}

func (f failing) Accept() (net.Conn, error) {
	select {
	case err := <-f.errs:
		return nil, err
	default:
		return f.Listener.Accept()
	}
}

func TestTooManyOpenFilesIsWaitedOut(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		var log bytes.Buffer
		b.server.log = slog.New(slog.NewTextHandler(&log, nil))
		b.verify()
		ln := failing{b.listen("second"), make(chan error, 3)}
		for range 3 {
			ln.errs <- &net.OpError{Op: "accept", Err: syscall.EMFILE}
		}
		began := time.Now()
		done := make(chan error, 1)
		go func() { done <- b.server.Serve(ln) }()
		conn, err := b.net.Dial(context.Background(), "second")
		if err != nil {
			t.Fatal(err)
		}
		c := &client{conn, t}
		c.send(startupPacket("alice"))
		c.wantServed()
		if took := time.Since(began); took != 3*acceptPause {
			t.Errorf("served after %s, want %s", took, 3*acceptPause)
		}
		b.server.Close()
		if err := <-done; !errors.Is(err, ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
		if n := strings.Count(log.String(), "cannot be accepted"); n != 1 {
			t.Errorf("%d lines in the log, want 1:\n%s", n, &log)
		}
	})
}

// A server that closes without a word, or is reset, has executed nothing: the
// client is served by the next attempt.
func TestAServerThatResetsIsTriedAgain(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		tries := make(chan bool, 10)
		b.answer["pg1"] = func(c net.Conn) {
			tries <- true
			if len(tries) < 3 {
				pgwire.ReadPacket(bufio.NewReader(c))
				b.net.Cut("pg1")
				return
			}
			echo(c)
		}
		b.verify()
		began := time.Now()
		b.connect().wantServed()
		if took := time.Since(began); len(tries) != 3 || took != retryPause {
			t.Errorf("%d attempts in %s; the second comes at once, the third after %s", len(tries), took, retryPause)
		}
	})
}
