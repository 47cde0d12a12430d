package health

import (
	"context"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"pgfailproxy/cluster"
	"pgfailproxy/internal/memnet"
)

var timing = Timing{Interval: time.Second, Timeout: time.Second, Retry: 100 * time.Millisecond, Threshold: 3}

// bubble is a prober and its member in virtual time.
type bubble struct {
	t      *testing.T
	net    *memnet.Network
	member *answerer
	dial   func(context.Context) (net.Conn, error) // if the network is not to be asked
	prober *Prober
	ln     net.Listener

	mu   sync.Mutex
	seen []cluster.Observation
}

// inBubble runs a test in virtual time, with a prober of a member that is well
// and was asked once.
func inBubble(t *testing.T, test func(b *bubble)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bubble{t: t, net: &memnet.Network{}, member: newAnswerer()}
		var err error
		if b.ln, err = b.net.Listen("pg1"); err != nil {
			t.Fatal(err)
		}
		go b.member.serve(b.ln)
		config, err := pgconn.ParseConfig("host=pg1 user=u dbname=d sslmode=disable")
		if err != nil {
			t.Fatal(err)
		}
		config.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"pg1"}, nil }
		config.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
			b.mu.Lock()
			dial := b.dial
			b.mu.Unlock()
			if dial != nil {
				return dial(ctx)
			}
			return b.net.Dial(ctx, "pg1")
		}
		b.prober = New("pg1", config, timing, func(o cluster.Observation) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.seen = append(b.seen, o)
		}, nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); b.prober.Run(ctx) }()
		synctest.Wait()
		if got := b.take(); len(got) != 1 || !got[0].Healthy() {
			t.Fatalf("first: %+v", got)
		}
		test(b)
		cancel()
		<-done
		b.net.Heal("pg1")
		b.ln.Close()
		b.member.breakAll()
		time.Sleep(time.Minute) // pgconn says goodbye in the background, for some seconds
		synctest.Wait()
		if n := b.net.Open("pg1"); n > 0 {
			t.Errorf("%d connections are left open", n)
		}
	})
}

// take returns what was observed since the last call.
func (b *bubble) take() []cluster.Observation {
	b.mu.Lock()
	defer b.mu.Unlock()
	seen := b.seen
	b.seen = nil
	return seen
}

// after lets time pass and returns what was observed in it.
func (b *bubble) after(d time.Duration) []cluster.Observation {
	time.Sleep(d)
	synctest.Wait()
	return b.take()
}

func reaches(all []cluster.Observation) []cluster.Reach {
	var out []cluster.Reach
	for _, o := range all {
		out = append(out, o.Reach)
	}
	return out
}

func (b *bubble) want(got []cluster.Observation, want ...cluster.Reach) {
	b.t.Helper()
	if !slices.Equal(reaches(got), want) {
		b.t.Fatalf("observed %v, want %v: %+v", reaches(got), want, got)
	}
}

// kill ends the member as a dead process does: connections break, and new ones
// are refused.
func (b *bubble) kill() {
	b.net.Refuse("pg1", true)
	b.member.breakAll()
}

func TestAHealthyMemberIsAskedEveryIntervalOverOneConnection(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.want(b.after(5*time.Second), cluster.ReachAnswered, cluster.ReachAnswered, cluster.ReachAnswered, cluster.ReachAnswered, cluster.ReachAnswered)
		if asked, logins := b.member.counts(); asked != 6 || logins != 1 {
			t.Errorf("%d questions over %d connections, want 6 over 1", asked, logins)
		}
	})
}

func TestTheAnswerIsReadForBothRoles(t *testing.T) {
	inBubble(t, func(b *bubble) {
		primary := b.after(time.Second)[0]
		if primary.Role != cluster.RolePrimary || primary.System != 7412345678901234567 ||
			primary.Position != (cluster.Position{Timeline: 1, LSN: 0x5000000}) || primary.ServerVersion != 180006 || primary.Addr.Address != "pg1" {
			t.Errorf("primary: %+v", primary)
		}
		b.member.set(func(a *answerer) { a.standby, a.timeline = true, 11 })
		standby := b.after(time.Second)[0]
		if standby.Role != cluster.RoleStandby || !standby.Streaming || standby.Replayed != 0x4000000 || standby.Position.Timeline != 11 {
			t.Errorf("standby: %+v", standby)
		}
	})
}

// A crash: the break is noticed at once, and the third refusal comes two retry
// intervals later, whenever in the interval it happens.
func TestACrashIsDeclaredTwoRetriesAfterTheConnectionBroke(t *testing.T) {
	for _, at := range []time.Duration{0, 1, 300 * time.Millisecond, 999 * time.Millisecond} {
		inBubble(t, func(b *bubble) {
			b.after(at)
			b.kill()
			b.want(b.after(0), cluster.ReachLost, cluster.ReachRefused)
			b.want(b.after(199*time.Millisecond), cluster.ReachRefused)
			b.want(b.after(time.Millisecond), cluster.ReachRefused)
		})
	}
}

// A hang: at worst it begins just after an answer. Then interval, and one
// time-out for each miss; not a moment sooner, and none is counted twice.
func TestAHangIsDeclaredAfterIntervalAndThreeTimeouts(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.net.Stall("pg1")
		b.want(b.after(1999 * time.Millisecond))
		b.want(b.after(time.Millisecond), cluster.ReachSilent)
		b.want(b.after(time.Second), cluster.ReachSilent)
		b.want(b.after(999 * time.Millisecond))
		b.want(b.after(time.Millisecond), cluster.ReachSilent)
	})
}

// A host dies with its server: packets vanish for a moment, then it is known to be
// gone. That a question was asked in the wrong moment must not cost a time-out;
// and it is one miss, however many connections it took.
func TestAPacketThatVanishesDoesNotDelayTheNextRefusal(t *testing.T) {
	inBubble(t, func(b *bubble) {
		broken := time.Now()
		b.mu.Lock()
		b.dial = func(ctx context.Context) (net.Conn, error) {
			if time.Since(broken) < 250*time.Millisecond {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return nil, syscall.ECONNREFUSED
		}
		b.mu.Unlock()
		b.member.breakAll()
		// Attempts at once, after 100 ms and 200 ms more; the last is refused.
		b.want(b.after(299*time.Millisecond), cluster.ReachLost)
		// The next question is due already.
		b.want(b.after(time.Millisecond), cluster.ReachRefused, cluster.ReachRefused)
		b.want(b.after(100*time.Millisecond), cluster.ReachRefused)
	})
}

func TestAShortHangIsOneMissAndThenAnAnswer(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.net.Stall("pg1")
		b.want(b.after(2500*time.Millisecond), cluster.ReachSilent)
		b.net.Heal("pg1")
		b.want(b.after(0), cluster.ReachAnswered)
	})
}

// A connection that breaks alone, such as by pg_terminate_backend, is no miss.
func TestABrokenConnectionIsNoMissWhileTheServerAnswers(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.net.Cut("pg1")
		b.want(b.after(0), cluster.ReachLost, cluster.ReachAnswered)
	})
}

func TestAServerThatSpeaksIsAlive(t *testing.T) {
	cases := map[string]struct {
		code, text string
		want       cluster.Reach
	}{
		"starting":       {"57P03", "the database system is starting up", cluster.ReachStarting},
		"recovering":     {"57P03", "the database system is in recovery mode", cluster.ReachStarting},
		"shutting down":  {"57P03", "the database system is shutting down", cluster.ReachRefused},
		"full":           {"53300", "sorry, too many clients already", cluster.ReachFull},
		"password":       {"28P01", `password authentication failed for user "u"`, cluster.ReachFailed},
		"no database":    {"3D000", `database "d" does not exist`, cluster.ReachFailed},
		"broken disk":    {"58030", "could not read file", cluster.ReachRefused},
		"out of memory":  {"53200", "out of memory", cluster.ReachRefused},
		"internal error": {"XX000", "cache lookup failed", cluster.ReachRefused},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(b *bubble) {
				b.member.set(func(a *answerer) {
					a.refuse = &pgproto3.ErrorResponse{Severity: "FATAL", Code: c.code, Message: c.text}
				})
				b.member.breakAll()
				b.want(b.after(0), cluster.ReachLost, c.want)
			})
		})
	}
}

// While it starts, it is asked often, so that a restart costs little.
func TestAStartingServerIsAskedEveryRetry(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.member.set(func(a *answerer) {
			a.refuse = &pgproto3.ErrorResponse{Severity: "FATAL", Code: "57P03", Message: "the database system is starting up"}
		})
		b.member.breakAll()
		b.after(950 * time.Millisecond)
		b.member.set(func(a *answerer) { a.refuse = nil })
		b.want(b.after(50*time.Millisecond), cluster.ReachAnswered)
	})
}

// Once it is known to be gone, asking often helps nobody.
func TestADeadMemberIsAskedEveryInterval(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.kill()
		b.after(time.Second)
		if got := b.after(10 * time.Second); len(got) != 10 {
			t.Errorf("asked %d times in 10 s, want 10", len(got))
		}
		b.net.Refuse("pg1", false)
		b.want(b.after(time.Second), cluster.ReachAnswered)
	})
}

func TestANudgeAsksAtOnceButNotMoreOftenThanRetry(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.after(500 * time.Millisecond)
		b.prober.Nudge()
		b.want(b.after(0), cluster.ReachAnswered)
		if _, logins := b.member.counts(); logins != 2 {
			t.Errorf("%d connections, want a second one: the first proves nothing of new ones", logins)
		}
		for range 50 {
			b.prober.Nudge()
			b.after(time.Millisecond)
		}
		if asked, _ := b.member.counts(); asked != 2 {
			t.Errorf("asked %d times, want 2: a nudge within retry_interval waits", asked)
		}
		b.want(b.after(50*time.Millisecond), cluster.ReachAnswered)
	})
}

// A smart shutdown: new connections are refused, and ours would keep the server
// from ever ending.
func TestANudgeFindsAServerThatRefusesNewConnectionsOnly(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.member.set(func(a *answerer) {
			a.refuse = &pgproto3.ErrorResponse{Severity: "FATAL", Code: "57P03", Message: "the database system is shutting down"}
		})
		b.want(b.after(time.Second), cluster.ReachAnswered)
		b.prober.Nudge()
		b.want(b.after(200*time.Millisecond), cluster.ReachRefused, cluster.ReachRefused)
		b.after(100 * time.Millisecond)
		if n := b.net.Open("pg1"); n != 0 {
			t.Errorf("%d connections are kept", n)
		}
	})
}

// A full server has no place for a new connection, so the old one is not given
// away for it.
func TestANudgeOfAFullServerKeepsTheConnection(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.member.set(func(a *answerer) {
			a.refuse = &pgproto3.ErrorResponse{Severity: "FATAL", Code: "53300", Message: "sorry, too many clients already"}
		})
		b.after(200 * time.Millisecond)
		b.prober.Nudge()
		b.want(b.after(0), cluster.ReachAnswered)
		b.want(b.after(time.Second), cluster.ReachAnswered)
	})
}

// A server that sends rows without end is not read to its end.
func TestRowsWithoutEndAreRefused(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.member.set(func(a *answerer) { a.rows = 1 << 30 })
		b.want(b.after(time.Second), cluster.ReachFailed)
	})
}

// A server that claims a message of a gigabyte must not make us keep one.
func TestAHugeAnswerIsRefused(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.ln.Close()
		ln, err := b.net.Listen("pg1")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				c.Read(make([]byte, 1024))
				c.Write([]byte{'R', 0x40, 0, 0, 0})
				go func() {
					for {
						if _, err := c.Write(make([]byte, 4096)); err != nil {
							c.Close()
							return
						}
					}
				}()
			}
		}()
		b.member.breakAll()
		b.want(b.after(0), cluster.ReachLost, cluster.ReachFailed)
	})
}
