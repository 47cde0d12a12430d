package proxy

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgfailproxy/pgwire"
)

// inFollowed is inBubble with sessions that are followed, before members that
// speak the protocol.
func inFollowed(t *testing.T, change func(*Options, *RouterOptions), test func(b *bubble, m *member)) {
	m := &member{}
	inBubble(t, func(o *Options, r *RouterOptions) {
		o.Passthrough = false
		if change != nil {
			change(o, r)
		}
	}, func(b *bubble) {
		b.answer["pg1"], b.answer["pg2"] = m.serve, m.serve
		b.verify()
		test(b, m)
	})
}

// member is a fake of a PostgreSQL server, for faults. It answers a query by its
// first word; one that it does not know is never answered.
type member struct {
	mu      sync.Mutex
	conns   []net.Conn
	cancels [][]byte
	got     []string // queries, also those that are not answered
	full    bool     // 57P03 to everybody
	extra   []byte   // said after the key
}

const serverKey = "\x00\x00\x30\x39server's secret key of 32 bytes!!"

func (m *member) serve(c net.Conn) {
	defer c.Close()
	in := bufio.NewReader(c)
	p, err := pgwire.ReadPacket(in)
	if err != nil {
		return
	}
	m.mu.Lock()
	full := m.full
	if p.Kind == pgwire.KindCancel {
		m.cancels = append(m.cancels, p.Raw[8:])
	} else {
		m.conns = append(m.conns, c)
	}
	m.mu.Unlock()
	if p.Kind != pgwire.KindStartup {
		return
	}
	if full {
		refusal, _ := pgwire.Fatal(pgwire.Error{Code: "57P03", Message: "the database system is shutting down"})
		c.Write(refusal)
		return
	}
	c.Write(authOK)
	c.Write(message('S', "application_name\x00app\x00"))
	c.Write(message('K', serverKey))
	c.Write(m.extra)
	c.Write(message('Z', "I"))
	for {
		kind, raw, err := pgwire.ReadMessage(in)
		if err != nil || kind == 'X' {
			return
		}
		text := strings.TrimRight(string(raw[5:]), "\x00")
		m.mu.Lock()
		m.got = append(m.got, text)
		m.mu.Unlock()
		for _, line := range map[string][]string{
			"BEGIN": {"C BEGIN|", "Z T"}, "SELECT": {"T x", "D x", "C SELECT 1|", "Z I"}, "COPY": {"G x"},
		}[strings.Fields(text + " ?")[0]] {
			c.Write(spell(line))
		}
	}
}

// each does something to every connection of a session.
func (m *member) each(do func(net.Conn)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.conns {
		do(c)
	}
}

// say sends every session a last message and closes it, as a server that stops.
func (m *member) say(code, text string) {
	last, _ := pgwire.Fatal(pgwire.Error{Code: code, Message: text})
	m.each(func(c net.Conn) { c.Write(last); c.Close() })
}

// login connects and expects to be logged in. It returns the key.
func (b *bubble) login() (*client, []byte) {
	b.t.Helper()
	c := b.connect()
	c.want(string(authOK))
	c.want(string(message('S', "application_name\x00app\x00")))
	kind, raw, err := pgwire.ReadMessage(c)
	if err != nil || kind != 'K' {
		b.t.Fatalf("%q, %v, want the key", kind, err)
	}
	c.want(string(message('Z', "I")))
	return c, raw[5:]
}

func (c *client) query(text string) { c.t.Helper(); c.send(spell("Q " + text)) }

// read reads messages until one of that kind.
func (c *client) until(want byte) {
	c.t.Helper()
	for {
		kind, _, err := pgwire.ReadMessage(c)
		if err != nil {
			c.t.Fatalf("%v, want a message %q", err, want)
		}
		if kind == want {
			return
		}
	}
}

func TestTheServersKeyIsNeverShown(t *testing.T) {
	inFollowed(t, nil, func(b *bubble, m *member) {
		_, key := b.login()
		if len(key) != len(serverKey) || string(key[:4]) != serverKey[:4] || string(key[4:]) == serverKey[4:] {
			t.Errorf("the key is %q", key)
		}
	})
}

func TestACancelRequestHitsWhatItsClientRuns(t *testing.T) {
	inFollowed(t, nil, func(b *bubble, m *member) {
		c, key := b.login()
		cancel := func(key []byte) {
			x := b.dial()
			x.send(pgwire.CancelRequest(key))
			x.wantEnd()
			x.Close()
		}
		cancel(key) // nothing runs
		c.query("hang")
		synctest.Wait()
		wrong := append([]byte(nil), key...)
		wrong[10] ^= 1
		cancel(wrong)
		cancel([]byte(serverKey))
		if len(m.cancels) != 0 {
			t.Fatalf("forwarded: %q", m.cancels)
		}
		cancel(key)
		if len(m.cancels) != 1 || string(m.cancels[0]) != serverKey {
			t.Errorf("the server got %q", m.cancels)
		}
		got := gather(t, b.metrics)
		for result, want := range map[string]float64{"idle": 1, "wrong_key": 2, "forwarded": 1} {
			if n := got["pgfailproxy_cancel_requests_total{result="+result+"}"]; n != want {
				t.Errorf("%s: %v, want %v", result, n, want)
			}
		}
	})
}

func TestWhoGuessesKeysHasToWait(t *testing.T) {
	inFollowed(t, nil, func(b *bubble, m *member) {
		_, key := b.login()
		key[20] ^= 1
		began := time.Now()
		const guesses = wrongBurst + 50
		for range guesses {
			x := b.dial()
			x.send(pgwire.CancelRequest(key))
			x.wantEnd()
			x.Close()
		}
		if took, least := time.Since(began), 45*time.Second/wrongKeys; took < least {
			t.Errorf("%d guesses in %s, want at least %s", guesses, took, least)
		}
	})
}

// Each row is a client at work when its primary is given up.
func TestAFailoverTellsEachClientWhatBecameOfItsWork(t *testing.T) {
	for _, c := range []struct {
		work       []string
		code, text string
	}{
		{nil, "57P01", "Nothing was under way"},
		{[]string{"BEGIN"}, "40001", "retry the transaction"},
		{[]string{"BEGIN", "UPDATE"}, "40001", "rolled back"},
		{[]string{"BEGIN", "COMMIT"}, "08007", "unknown whether"},
		{[]string{"UPDATE"}, "08007", "look whether"},
		{[]string{"COPY t FROM STDIN"}, "40001", "rolled back"},
	} {
		t.Run(strings.Join(c.work, " "), func(t *testing.T) {
			inFollowed(t, nil, func(b *bubble, m *member) {
				cl, _ := b.login()
				for i, q := range c.work {
					cl.query(q)
					if i < len(c.work)-1 {
						cl.until('Z')
					}
				}
				synctest.Wait()
				if len(c.work) > 0 && !strings.HasPrefix(c.work[len(c.work)-1], "UPDATE") && c.work[len(c.work)-1] != "COMMIT" {
					if c.work[0] == "BEGIN" {
						cl.until('Z')
					} else {
						cl.until('G')
					}
				}
				b.giveUp()
				cl.wantFatal(c.code, c.text)
			})
		})
	}
}

// The server's end is noticed before it is given up.
func TestAServerThatDiesIsSpokenFor(t *testing.T) {
	inFollowed(t, nil, func(b *bubble, m *member) {
		idle, _ := b.login()
		busy, _ := b.login()
		busy.query("UPDATE")
		synctest.Wait()
		m.each(func(c net.Conn) { c.Close() })
		idle.wantFatal("57P01", `Server "pg1" (pg1) closed the connection`)
		busy.wantFatal("08007", "the connection to the primary server was lost")
		select {
		case d := <-b.doubts:
			if d != "pg1" {
				t.Errorf("in doubt: %s", d)
			}
		default:
			t.Error("nobody was told to look")
		}
	})
}

func TestAServerThatStopsIsSpokenForAndOneThatEndsASessionSpeaksItself(t *testing.T) {
	inFollowed(t, nil, func(b *bubble, m *member) {
		c, _ := b.login()
		c.query("BEGIN")
		c.until('Z')
		m.say("57P01", "terminating connection due to administrator command")
		c.wantFatal("57P01", "administrator command")

		m.conns = nil
		c, _ = b.login()
		c.query("BEGIN")
		c.until('Z')
		m.mu.Lock()
		m.full = true
		m.mu.Unlock()
		m.say("57P01", "terminating connection due to administrator command")
		c.wantFatal("40001", "rolled back")

		m.mu.Lock()
		m.full = false
		m.conns = nil
		m.mu.Unlock()
		c, _ = b.login()
		m.say("57P05", "terminating connection due to idle-session timeout")
		c.wantFatal("57P05", "idle-session")
	})
}

func TestInTheMiddleOfAMessageNothingIsSaid(t *testing.T) {
	inFollowed(t, nil, func(b *bubble, m *member) {
		c, _ := b.login()
		c.query("hang")
		synctest.Wait()
		large := message('D', strings.Repeat("x", 100_000))
		m.each(func(s net.Conn) { s.Write(large[:20_000]) })
		got := make([]byte, 20_000)
		if _, err := io.ReadFull(c, got); err != nil {
			t.Fatal(err)
		}
		b.giveUp()
		c.wantEnd()
	})
}

// A message that is short is held back until it is whole, so that there is always
// a place for a word of ours.
func TestACutMessageIsNotShown(t *testing.T) {
	inFollowed(t, nil, func(b *bubble, m *member) {
		c, _ := b.login()
		c.query("hang")
		synctest.Wait()
		row := message('D', strings.Repeat("x", 1000))
		m.each(func(s net.Conn) { s.Write(append(row, row[:500]...)) })
		c.want(string(row))
		b.giveUp()
		c.wantFatal("08007", "failover")
	})
}

func TestGarbageOfEitherSideEndsTheSession(t *testing.T) {
	inFollowed(t, nil, func(b *bubble, m *member) {
		c, _ := b.login()
		c.send([]byte{'Q', 0, 0, 0, 1, 0})
		c.wantFatal("08P01", "invalid message length")

		c, _ = b.login()
		m.each(func(s net.Conn) { s.Write([]byte{'D', 0, 0, 0, 3, 0}) })
		c.wantFatal("57P01", "was lost")
	})
}

func TestAnIdleSessionIsEndedAndOneAtWorkIsNot(t *testing.T) {
	inFollowed(t, func(o *Options, _ *RouterOptions) { o.ClientIdle = 10 * time.Minute }, func(b *bubble, m *member) {
		began := time.Now()
		idle, _ := b.login()
		inBlock, _ := b.login()
		inBlock.query("BEGIN")
		inBlock.until('Z')
		idle.wantFatal("57P05", "client_idle")
		if took := time.Since(began); took < 10*time.Minute || took > 11*time.Minute {
			t.Errorf("ended after %s", took)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := b.server.Stats().Open; n != 1 {
			t.Errorf("%d sessions are left, want the one in a transaction", n)
		}
	})
}

func TestRolesAndDatabasesHaveTheirLimits(t *testing.T) {
	inFollowed(t, func(o *Options, _ *RouterOptions) { o.MaxPerRole = 1 }, func(b *bubble, m *member) {
		first, _ := b.login()
		second := b.connect()
		second.wantFatal("53300", `too many connections for role "alice"`)
		first.send(message('X', ""))
		first.wantEnd()
		synctest.Wait()
		b.login()
	})
	inFollowed(t, func(o *Options, _ *RouterOptions) { o.MaxPerDatabase = 1 }, func(b *bubble, m *member) {
		b.login()
		b.connect().wantFatal("53300", `too many connections for database "alice"`)
	})
}

func TestTheListOfSessionsShowsWhereEachStands(t *testing.T) {
	inFollowed(t, nil, func(b *bubble, m *member) {
		b.login()
		busy, _ := b.login()
		time.Sleep(time.Minute)
		busy.query("UPDATE secret")
		time.Sleep(time.Minute)
		waiting := b.dial()
		synctest.Wait()
		all := b.server.Sessions()
		if len(all) != 3 {
			t.Fatalf("%+v", all)
		}
		for i, want := range []struct {
			state State
			since time.Duration
		}{{StateIdle, 2 * time.Minute}, {StateBusy, time.Minute}, {StateStartup, 0}} {
			s := all[i]
			if s.State != want.state || time.Since(s.Since) != want.since {
				t.Errorf("session %d is %s for %s, want %s for %s", i, s.State, time.Since(s.Since), want.state, want.since)
			}
			if i < 2 && (s.User != "alice" || s.Database != "alice" || s.Application != "app" || s.Member != "pg1") {
				t.Errorf("%+v", s)
			}
		}
		if all[1].FromClient == 0 {
			t.Errorf("%+v", all[1])
		}
		waiting.Close()
	})
}

func TestAServerLostDuringALoginIsToldAndNothingIsLeft(t *testing.T) {
	inFollowed(t, nil, func(b *bubble, m *member) {
		b.answer["pg1"] = func(c net.Conn) {
			pgwire.ReadPacket(bufio.NewReader(c))
			c.Write(message('R', "\x00\x00\x00\x05salt")) // a password, please
			time.Sleep(time.Second)
			c.Close()
		}
		c := b.connect()
		c.want(string(message('R', "\x00\x00\x00\x05salt")))
		c.send(message('p', "md5\x00"))
		c.wantFatal("57P03", "lost during the login")
	})
}

func TestASlowLoginEndsAfterItsTimeout(t *testing.T) {
	inFollowed(t, nil, func(b *bubble, m *member) {
		b.answer["pg1"] = func(c net.Conn) {
			pgwire.ReadPacket(bufio.NewReader(c))
			c.Write(message('R', "\x00\x00\x00\x05salt"))
			io.Copy(io.Discard, c)
			c.Close()
		}
		began := time.Now()
		c := b.connect()
		c.want(string(message('R', "\x00\x00\x00\x05salt")))
		c.wantFatal("08P01", "authentication due to timeout")
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("after %s", took)
		}
		c = b.connect()
		c.want(string(message('R', "\x00\x00\x00\x05salt")))
		c.send(binary.BigEndian.AppendUint32([]byte{'p'}, 1<<20))
		c.wantFatal("08P01", "invalid length")
	})
}

func TestAProxyThatStopsSaysSo(t *testing.T) {
	inFollowed(t, nil, func(b *bubble, m *member) {
		c, _ := b.login()
		c.query("BEGIN")
		c.until('Z')
		done := make(chan error)
		go func() { done <- b.server.Close() }()
		c.wantFatal("40001", "the proxy is shutting down")
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
