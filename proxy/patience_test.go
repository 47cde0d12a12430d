package proxy

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"pgfailproxy/pgwire"
)

// The time in which a client waits is one, however many packets it needs: a
// request for TLS that was held leaves less for the start-up packet.
func TestTheHoldTimeoutIsForAllOfAStartup(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		b.answer["pg1"] = func(c net.Conn) { // refuses TLS, then is gone
			defer c.Close()
			r := bufio.NewReader(c)
			pgwire.ReadPacket(r)
			c.Write([]byte{'N'})
			pgwire.ReadPacket(r)
		}
		began := time.Now()
		c := b.dial()
		c.send(requestPacket(sslRequest))
		time.Sleep(29 * time.Second)
		b.verify()
		c.want("N")
		b.router.Suspend()
		c.send(startupPacket("alice"))
		c.wantFatal("57P03", "no primary server is available")
		if took := time.Since(began); took != 30*time.Second {
			t.Errorf("told after %s", took)
		}
	})
}

// While new sessions wait, those that exist go on, and may be cancelled.
func TestASessionOnAPrimaryInDoubtCanBeCancelled(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		cancelled := make(chan struct{}, 2)
		b.answer["pg1"] = func(c net.Conn) {
			defer c.Close()
			r := bufio.NewReader(c)
			if p, err := pgwire.ReadPacket(r); err == nil && p.Kind == pgwire.KindCancel {
				cancelled <- struct{}{}
				return
			}
			c.Write(authOK)
			io.Copy(c, r)
		}
		request := append(binary.BigEndian.AppendUint32([]byte{0, 0, 0, 16}, 80877102), 1, 2, 3, 4, 5, 6, 7, 8)
		cancel := func() {
			c := b.dial()
			c.send(request)
			c.wantEnd()
			c.Close()
		}
		b.verify()
		session := b.connect()
		session.wantServed()
		b.router.Suspend()
		cancel()
		synctest.Wait()
		if len(cancelled) != 1 {
			t.Error("the request was not passed on")
		}
		b.giveUp()
		cancel()
		if len(cancelled) != 1 {
			t.Error("a request was passed on to a member that was given up")
		}
	})
}

func TestAClientsOwnTimeIsNoHold(t *testing.T) {
	inBubble(t, func(o *Options, _ *RouterOptions) { o.HoldTimeout = 5 * time.Second }, func(b *bubble) {
		b.verify()
		c := b.dial()
		c.send(requestPacket(sslRequest))
		c.want("N")
		time.Sleep(6 * time.Second) // less than login_timeout
		c.send(startupPacket("alice"))
		c.wantServed()
	})
}

func TestACancelWithoutASessionReachesNoMemberInDoubt(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		got := make(chan struct{}, 1)
		b.answer["pg1"] = func(c net.Conn) {
			defer c.Close()
			if p, err := pgwire.ReadPacket(bufio.NewReader(c)); err == nil && p.Kind == pgwire.KindCancel {
				got <- struct{}{}
			}
		}
		b.verify()
		b.router.Suspend() // such as: pg1 came back in recovery, or is another system
		c := b.dial()
		c.send(append(binary.BigEndian.AppendUint32([]byte{0, 0, 0, 16}, 80877102), 1, 2, 3, 4, 5, 6, 7, 8))
		c.wantEnd()
		c.Close()
		synctest.Wait()
		if len(got) > 0 {
			t.Error("a client's bytes reached a member that is not proved to be the primary, and no session runs there")
		}
	})
}
