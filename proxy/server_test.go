package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgfailproxy/cluster"
	"pgfailproxy/pgwire"
)

func TestASessionGoesToThePrimary(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		b.verify()
		c := b.connect()
		c.wantServed()
		c.Close()
	})
}

func TestClientsWaitUntilThePrimaryIsVerified(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		c := b.connect()
		time.Sleep(29 * time.Second)
		synctest.Wait()
		if s := b.server.Stats(); s.Held != 1 || s.Open != 1 {
			t.Fatalf("%+v, want one held", s)
		}
		b.verify()
		c.wantServed()
	})
}

func TestAHeldClientIsToldAfterExactlyTheHoldTimeout(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		began := time.Now()
		c := b.connect()
		c.wantFatal("57P03", "Waited 30s")
		if took := time.Since(began); took != 30*time.Second {
			t.Errorf("told after %s", took)
		}
		if s := b.server.Stats(); s.Refused != 1 {
			t.Errorf("%+v, want one refused", s)
		}
	})
}

// A client that asked for TLS would not show an error in answer to that; it gets
// it after its start-up packet.
func TestAHeldClientThatAsksForTLSIsToldAfterItsStartupPacket(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		c := b.dial()
		c.send(requestPacket(sslRequest))
		c.want("N")
		c.send(startupPacket("alice"))
		c.wantFatal("57P03", "no primary server is available")
	})
}

func TestARequestForGSSIsAnsweredNoAndOneForTLSByTheServer(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		b.verify()
		c := b.dial()
		c.send(requestPacket(gssRequest))
		c.want("N")
		c.send(requestPacket(sslRequest))
		c.want("N")
		c.send(startupPacket("alice"))
		c.wantServed()
		if n := b.net.Open("pg1"); n != 1 {
			t.Errorf("%d connections to the server, want the one that refused TLS", n)
		}
	})
}

func TestBytesBehindARequestForTLSAreRefused(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		b.verify()
		for _, request := range []uint32{sslRequest, gssRequest} {
			c := b.dial()
			c.send(append(requestPacket(request), "select"...))
			c.wantFatal("08P01", "unencrypted data")
		}
	})
}

func TestGarbageIsAnsweredInOneLine(t *testing.T) {
	cases := map[string]struct{ bytes, code, text string }{
		"http":                {"GET / HTTP/1.1\r\n\r\n", "08P01", "invalid length"},
		"zero":                {"\x00\x00\x00\x00", "08P01", "invalid length"},
		"too long":            {"\x00\x00\x27\x11\x00\x03\x00\x00", "08P01", "invalid length"},
		"version 2":           {"\x00\x00\x00\x08\x00\x02\x00\x00", "0A000", "unsupported frontend protocol 2.0"},
		"no terminator":       {"\x00\x00\x00\x0d\x00\x03\x00\x00user\x00", "08P01", "terminator"},
		"short cancel":        {"\x00\x00\x00\x0b\x04\xd2\x16\x2e\x00\x00\x00", "08P01", "cancel"},
		"TLS request twice":   {string(requestPacket(gssRequest)), "", ""},
		"trailing bytes":      {"\x00\x00\x00\x0a\x00\x03\x00\x00\x00x", "08P01", "terminator"},
		"request with a body": {"\x00\x00\x00\x09\x04\xd2\x16\x2f\x00", "08P01", "invalid length"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(b *bubble) {
				b.verify()
				client := b.dial()
				client.send([]byte(c.bytes))
				if c.code == "" { // a second request of the same kind
					client.want("N")
					client.send([]byte(c.bytes))
					client.wantFatal("08P01", "request for encryption")
					return
				}
				client.wantFatal(c.code, c.text)
			})
		})
	}
}

func TestASlowStartupEndsAfterItsTimeout(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		b.verify()
		began := time.Now()
		c := b.dial()
		c.send(startupPacket("alice")[:7])
		c.wantFatal("08P01", "timeout")
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("ended after %s", took)
		}
	})
}

func TestALookAtThePortIsNoError(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		b.dial().Close()
		synctest.Wait()
		if s := b.server.Stats(); s.Open != 0 || s.Refused != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// The whole of a failover as clients see it: those that were connected end, those
// that come wait, and are served by the new primary.
func TestAFailoverEndsSessionsAndServesNewOnesElsewhere(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		b.verify()
		old := b.connect()
		old.wantServed()
		b.router.Suspend()
		waiting := b.connect()
		time.Sleep(time.Second)
		old.send([]byte("still"))
		old.want("still") // in doubt, nothing is given up
		b.giveUp()
		old.wantEnd()
		synctest.Wait()
		if n := b.net.Open("pg1"); n != 0 {
			t.Errorf("%d connections to the old primary are left", n)
		}
		time.Sleep(time.Second)
		b.succeed()
		waiting.wantServed()
		if n := b.net.Open("pg2"); n != 1 {
			t.Errorf("%d connections to the new primary, want 1", n)
		}
	})
}

// A client that connects in the very moment in which the primary stops or starts
// is told nothing of it: nothing was executed, so it waits and is served.
func TestAServerThatIsStoppingIsAReasonToWait(t *testing.T) {
	for name, answer := range map[string]func(net.Conn){
		"shutting down": refuseWith("57P03", "the database system is shutting down"),
		"terminated":    refuseWith("57P01", "terminating connection due to administrator command"),
		"closed":        func(c net.Conn) { c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(b *bubble) {
				b.answer["pg1"] = answer
				b.verify()
				c := b.connect()
				time.Sleep(time.Second)
				b.giveUp()
				b.succeed()
				c.wantServed()
				if m := <-b.doubts; m != "pg1" {
					t.Errorf("doubts %s", m)
				}
			})
		})
	}
}

func TestAnUnreachablePrimaryIsTriedAgainUntilTheHoldTimeout(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		b.net.Refuse("pg1", true)
		b.verify()
		c := b.connect()
		time.Sleep(time.Second)
		b.net.Refuse("pg1", false)
		c.wantServed()
		b.net.Refuse("pg1", true)
		began := time.Now()
		b.connect().wantFatal("57P03", "could not be reached")
		if took := time.Since(began); took != 30*time.Second {
			t.Errorf("told after %s", took)
		}
	})
}

// What the server says to the client that is not about starting or stopping is
// the client's business.
func TestOtherErrorsOfTheServerArePassedOn(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		b.answer["pg1"] = refuseWith("53300", "sorry, too many clients already")
		b.verify()
		b.connect().wantFatal("53300", "too many clients")
		b.answer["pg1"] = func(c net.Conn) {
			defer c.Close()
			pgwire.ReadPacket(bufio.NewReader(c))
			c.Write([]byte{'R', 0x40, 0, 0, 0})
		}
		b.connect().wantFatal("08P01", "invalid length")
	})
}

func TestAHangingServerDoesNotHoldItsClientForEver(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		b.answer["pg1"] = func(c net.Conn) { io.Copy(io.Discard, c); c.Close() }
		b.verify()
		c := b.connect()
		time.Sleep(time.Second)
		b.giveUp()
		b.succeed()
		c.wantServed()
	})
}

// A client that dials a primary that is cut off must not wait for its
// connect_timeout once another one serves.
func TestADialIntoTheVoidEndsWithTheRoute(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		b.verify()
		b.net.Stall("pg1")
		began := time.Now()
		c := b.connect()
		time.Sleep(time.Second)
		b.giveUp()
		b.succeed()
		c.wantServed()
		if took := time.Since(began); took != time.Second {
			t.Errorf("served after %s, want at once when the new primary was", took)
		}
		b.net.Heal("pg1")
	})
}

func TestAHeldClientThatLeavesIsForgottenAtOnce(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		c := b.connect()
		synctest.Wait()
		c.Close()
		synctest.Wait()
		if s := b.server.Stats(); s.Held != 0 || s.Open != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestHeldClientsAreLetGoAtTheReleaseRate(t *testing.T) {
	const clients, perSecond = 100, 20
	inBubble(t, func(_ *Options, r *RouterOptions) { r.ReleaseRate = perSecond }, func(b *bubble) {
		var mu sync.Mutex
		var served []time.Duration
		var wg sync.WaitGroup
		var opened time.Time
		for range clients {
			c := b.connect()
			wg.Go(func() {
				c.wantServed()
				mu.Lock()
				defer mu.Unlock()
				served = append(served, time.Since(opened))
			})
		}
		synctest.Wait()
		opened = time.Now()
		b.verify()
		wg.Wait()
		slices.Sort(served)
		// A tenth of a second's worth at once, then one every 50 ms.
		for i, want := range map[int]time.Duration{0: 0, 1: 0, 2: 50 * time.Millisecond, clients - 1: (clients - 2) * 50 * time.Millisecond} {
			if got := served[i].Round(time.Millisecond); got != want {
				t.Errorf("client %d is served after %s, want %s", i, got, want)
			}
		}
	})
}

func TestTooManyClientsAreToldSo(t *testing.T) {
	inBubble(t, func(o *Options, _ *RouterOptions) { o.MaxClients = 2 }, func(b *bubble) {
		b.verify()
		first, second := b.connect(), b.connect()
		first.wantServed()
		second.wantServed()
		b.connect().wantFatal("53300", "too many clients")
		c := b.dial()
		c.send(requestPacket(sslRequest))
		c.want("N")
		c.send(startupPacket("alice"))
		c.wantFatal("53300", "too many clients")
		first.Close()
		synctest.Wait()
		b.connect().wantServed()
	})
}

// More than can be told are closed without a word: memory stays bounded.
func TestAFloodOfClientsIsBounded(t *testing.T) {
	inBubble(t, func(o *Options, _ *RouterOptions) { o.MaxClients = 1 }, func(b *bubble) {
		b.verify()
		b.connect().wantServed()
		var flood []*client
		for range maxTurnedAway + 50 {
			flood = append(flood, b.dial())
		}
		synctest.Wait()
		for _, c := range flood[maxTurnedAway:] {
			c.wantEnd()
		}
		if got := b.server.Stats().Refused; got != 50 {
			t.Errorf("%d refused, want 50", got)
		}
		time.Sleep(11 * time.Second) // the others said nothing
		b.connect().wantFatal("53300", "too many clients")
	})
}

func TestCancelRequestsReachThePrimaryWithKeysOfEveryLength(t *testing.T) {
	inBubble(t, func(o *Options, _ *RouterOptions) { o.MaxClients = 1 }, func(b *bubble) {
		got := make(chan []byte, 1)
		b.verify()
		session := b.connect()
		session.wantServed() // also when there is no place for another client
		b.answer["pg1"] = func(c net.Conn) {
			defer c.Close()
			head := make([]byte, 4)
			io.ReadFull(c, head)
			rest := make([]byte, int(head[2])<<8|int(head[3])-4)
			io.ReadFull(c, rest)
			got <- append(head, rest...)
		}
		for _, key := range []int{4, 32, 256} {
			n := 12 + key
			packet := append([]byte{0, 0, byte(n >> 8), byte(n), 0x04, 0xd2, 0x16, 0x2e, 0, 0, 0, 42}, make([]byte, key)...)
			c := b.dial()
			c.send(packet)
			c.wantEnd() // only when the server has acted
			if forwarded := <-got; string(forwarded) != string(packet) {
				t.Errorf("key of %d bytes: forwarded %x", key, forwarded)
			}
			c.Close()
		}
		b.router.Suspend()
		c := b.dial()
		c.send(append([]byte{0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e, 0, 0, 0, 42}, make([]byte, 4)...))
		c.wantEnd() // never held
	})
}

func TestAnEndOfOneSideIsPassedOnAndTheOtherGoesOn(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		b.answer["pg1"] = func(c net.Conn) {
			defer c.Close()
			io.ReadFull(c, make([]byte, len(startupPacket("alice"))))
			c.Write(authOK)
			all, _ := io.ReadAll(c) // the client's end
			time.Sleep(time.Second)
			fmt.Fprintf(c, "got %d", len(all))
		}
		b.verify()
		c := b.connect()
		c.want(string(authOK))
		c.send([]byte("last words"))
		c.Conn.(interface{ CloseWrite() error }).CloseWrite()
		c.want("got 10")
		c.wantEnd()
	})
}

func TestShutdownLetsSessionsFinishAndSendsHeldClientsAway(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		b.verify()
		running := b.connect()
		running.wantServed()
		b.router.Suspend()
		held := b.connect()
		synctest.Wait()
		done := make(chan error, 1)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		go func() { done <- b.server.Shutdown(ctx) }()
		held.wantFatal("57P03", "shutting down")
		time.Sleep(10 * time.Second)
		running.send([]byte("still here"))
		running.want("still here")
		if _, err := b.net.Dial(ctx, "proxy"); err == nil {
			t.Error("a new client was accepted")
		}
		running.Close()
		if err := <-done; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	})
}

func TestShutdownEndsWhatDoesNotFinishInTime(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		b.verify()
		c := b.connect()
		c.wantServed()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		began := time.Now()
		if err := b.server.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown: %v", err)
		}
		if took := time.Since(began); took != 20*time.Second {
			t.Errorf("took %s", took)
		}
		c.wantEnd()
		synctest.Wait() // the member's own end too
		if n := b.net.Open("pg1"); n != 0 {
			t.Errorf("%d connections to the server are left", n)
		}
		if n := gather(t, b.metrics)["pgfailproxy_sessions_ended_total{cause=shutdown}"]; n != 1 {
			t.Errorf("%v sessions ended by the shutdown, want 1", n)
		}
	})
}

func TestShutdownDoesNotWaitWhenThereIsNoSession(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		began := time.Now()
		if err := b.server.Shutdown(context.Background()); err != nil || time.Since(began) != 0 {
			t.Errorf("Shutdown: %v after %s", err, time.Since(began))
		}
	})
}

// The Record is the truth: only a newer one changes anything, and only its own
// epoch can be opened.
func TestTheRouterFollowsNewerRecordsOnly(t *testing.T) {
	pg1, pg2 := cluster.Addr{Network: "mem", Address: "pg1"}, cluster.Addr{Network: "mem", Address: "pg2"}
	r := NewRouter(RouterOptions{})
	r.Open(1, pg1)
	if route, _ := r.Current(); route != nil {
		t.Fatal("open without a record")
	}
	r.Apply(cluster.Record{Revision: 5, Epoch: 2, Primary: "pg1"})
	r.Open(1, pg1)
	if route, why := r.Current(); route != nil || why == "" {
		t.Fatalf("an older epoch was opened: %v, %q", route, why)
	}
	r.Open(2, pg1)
	first, _ := r.Current()
	r.Apply(cluster.Record{Revision: 4, Epoch: 3, Held: true, Primary: "pg1"})
	r.Apply(cluster.Record{Revision: 6, Epoch: 2, Primary: "pg1"})
	if route, _ := r.Current(); route != first || first.Context().Err() != nil {
		t.Fatal("an older record, or one of the same epoch, ended the route")
	}
	r.Apply(cluster.Record{Revision: 7, Epoch: 3, Held: true, Primary: "pg1"})
	var gone *GoneError
	if !errors.As(context.Cause(first.Context()), &gone) || gone.Member != "pg1" {
		t.Fatalf("cause %v", context.Cause(first.Context()))
	}
	r.Open(3, pg2)
	if route, _ := r.Current(); route != nil {
		t.Fatal("opened while held")
	}
	r.Apply(cluster.Record{Revision: 8, Epoch: 3, Primary: "pg2"})
	r.Open(3, pg2)
	if route, _ := r.Current(); route == nil || route.Member != "pg2" {
		t.Fatal("not open")
	}
}
