package health

import (
	"context"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"pgfailproxy/cluster"
)

func TestANudgeCountsWhereTheIntervalIsTheRetry(t *testing.T) {
	was := timing
	defer func() { timing = was }()
	timing.Interval = timing.Retry
	inBubble(t, func(b *bubble) {
		b.member.set(func(a *answerer) {
			a.refuse = &pgproto3.ErrorResponse{Severity: "FATAL", Code: "57P03", Message: "the database system is shutting down"}
		})
		for range 10 {
			time.Sleep(33 * time.Millisecond)
			b.prober.Nudge()
		}
		for _, o := range b.after(time.Second) {
			if o.Reach == cluster.ReachRefused {
				return
			}
		}
		t.Error("no nudge was heard: the server refuses new connections and is said to answer")
	})
}

func TestASecondAttemptThatFindsNoPlaceDoesNotDecide(t *testing.T) {
	inBubble(t, func(b *bubble) {
		full := newAnswerer()
		full.refuse = &pgproto3.ErrorResponse{Severity: "FATAL", Code: "53300", Message: "too many connections for role"}
		ln, err := b.net.Listen("full")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		go full.serve(ln)
		began := time.Now()
		b.mu.Lock()
		b.dial = func(ctx context.Context) (net.Conn, error) {
			if time.Since(began) > 0 { // the only place of the role is taken by the first
				return b.net.Dial(ctx, "full")
			}
			select { // a log-in that takes a moment
			case <-time.After(150 * time.Millisecond):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			return b.net.Dial(ctx, "pg1")
		}
		b.mu.Unlock()
		b.member.breakAll()
		got := b.after(200 * time.Millisecond)
		b.mu.Lock()
		b.dial = nil
		b.mu.Unlock()
		if r := reaches(got); !slices.Equal(r, []cluster.Reach{cluster.ReachLost, cluster.ReachAnswered}) {
			t.Errorf("observed %v", r)
		}
		full.breakAll()
	})
}
