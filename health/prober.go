package health

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"pgfailproxy/cluster"
)

// maxAnswer bounds one message of a server, in bytes. An answer to a probe has
// some hundred.
const maxAnswer = 1 << 20

// Timing says how often a member is asked. All fields must be positive.
type Timing struct {
	// Interval is the time from one question to the next while all is well.
	Interval time.Duration
	// Timeout is how long an answer may take, a new connection included.
	Timeout time.Duration
	// Retry is the time from one question to the next after a miss, or while
	// the member starts up. A question that runs into Timeout is always waited
	// for: one lost packet is never counted twice.
	Retry time.Duration
	// Threshold is after how many misses in a row Interval is used again: the
	// member is then known to be gone, and asking often helps nobody.
	Threshold int
}

// Prober asks one member. Its zero value is of no use: see New.
type Prober struct {
	member  string
	config  *pgconn.Config
	timing  Timing
	report  func(cluster.Observation)
	metrics *Metrics
	nudge   chan struct{}

	// Owned by Run.
	conn    *pgconn.PgConn // kept between questions; nil after any failure
	misses  int
	doubted bool // after a Nudge: conn says nothing of new connections
}

// New returns a Prober that connects as config says and hands each Observation
// to report, which must not block for long. metrics may be nil.
func New(member string, config *pgconn.Config, timing Timing, report func(cluster.Observation), metrics *Metrics) *Prober {
	return &Prober{member: member, config: bounded(config), timing: timing, report: report, metrics: metrics, nudge: make(chan struct{}, 1)}
}

// Once asks a member once, over a connection of its own, within timeout.
func Once(ctx context.Context, member string, config *pgconn.Config, timeout time.Duration) cluster.Observation {
	p := &Prober{member: member, config: bounded(config), timing: Timing{Timeout: timeout, Retry: timeout}}
	defer p.drop()
	return p.probe(ctx)
}

// bounded returns a copy of config with which no server can make us keep more
// than maxAnswer bytes.
func bounded(config *pgconn.Config) *pgconn.Config {
	config = config.Copy()
	config.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		f := pgproto3.NewFrontend(r, w)
		f.SetMaxBodyLen(maxAnswer)
		return f
	}
	return config
}

// Nudge has the member asked soon rather than at the next interval, and over a
// new connection, because somebody has seen a reason to doubt it: a server that
// waits for its sessions to end before it stops refuses new ones, and ours is
// one of the old. It never blocks, and any number of calls has the member asked
// no more often than every Retry.
func (p *Prober) Nudge() {
	select {
	case p.nudge <- struct{}{}:
	default:
	}
}

// Run asks until ctx ends, and returns the cause.
func (p *Prober) Run(ctx context.Context) error {
	defer p.drop()
	for {
		o := p.probe(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p.deliver(o)
		lost := p.pause(ctx, o)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if lost != nil {
			p.deliver(*lost)
		}
	}
}

func (p *Prober) deliver(o cluster.Observation) {
	switch {
	case o.Reach.Miss():
		p.misses++
	case o.Reach != cluster.ReachLost:
		p.misses = 0
	}
	p.metrics.observe(o)
	p.report(o)
}

// probe asks once, over the kept connection if there is one.
func (p *Prober) probe(ctx context.Context) cluster.Observation {
	o := cluster.Observation{Member: p.member, Asked: time.Now()}
	ctx, cancel := context.WithTimeout(ctx, p.timing.Timeout)
	defer cancel()

	fresh := p.conn == nil || p.doubted
	err := p.renew(ctx)
	if err == nil {
		err = ask(ctx, p.conn, &o)
	}
	o.Took = time.Since(o.Asked)
	if err != nil {
		r, text := reach(err, fresh)
		p.drop()
		return cluster.Observation{Member: o.Member, Asked: o.Asked, Took: o.Took, Reach: r, Err: text}
	}
	o.Reach = cluster.ReachAnswered
	addr := p.conn.Conn().RemoteAddr()
	o.Addr = cluster.Addr{Network: addr.Network(), Address: addr.String()}
	return o
}

// renew makes a connection if there is none, or it is doubted. The old one goes
// when it is known whether there is a new one: what it proved holds until then.
// A server that has no place for a new one is asked over the old.
func (p *Prober) renew(ctx context.Context) error {
	if p.conn != nil && !p.doubted {
		return nil
	}
	doubted := p.doubted
	p.doubted = false
	conn, err := connect(ctx, p.config, p.timing.Retry)
	var full *pgconn.PgError
	if doubted && errors.As(err, &full) && full.Code == "53300" {
		return nil
	}
	p.drop()
	if err != nil {
		return err
	}
	p.conn = conn
	return nil
}

// drop closes the kept connection without waiting for the server, which may
// not be there any more.
func (p *Prober) drop() {
	if p.conn == nil {
		return
	}
	p.conn.Conn().Close()
	p.conn = nil
}

// pause waits for the time of the next question. It ends sooner when Nudge is
// called, and when the kept connection breaks: then it returns that as an
// observation, so that a server that dies is noticed at once and not at the
// next interval.
func (p *Prober) pause(ctx context.Context, o cluster.Observation) *cluster.Observation {
	next := o.Asked.Add(p.gap(o))
	soonest := o.Asked.Add(min(p.timing.Retry, p.timing.Interval))

	if p.conn == nil {
		if o.Reach == cluster.ReachLost {
			return nil // ask again at once: the question was not answered
		}
		p.sleep(ctx, next, soonest)
		return nil
	}
	wait, cancel := context.WithDeadline(ctx, next)
	defer cancel()
	nudged := make(chan bool, 1)
	go p.awaitNudge(wait, soonest, cancel, nudged)
	err := p.conn.WaitForNotification(wait)
	for err == nil { // somebody notifies on a channel: not for us
		err = p.conn.WaitForNotification(wait)
	}
	cancel()
	doubted := <-nudged
	if !p.conn.IsClosed() {
		p.doubted = doubted
		return nil
	}
	p.drop()
	if ctx.Err() != nil {
		return nil
	}
	_, text := reach(err, false)
	return &cluster.Observation{Member: p.member, Asked: time.Now(), Reach: cluster.ReachLost, Err: text}
}

// gap is the time from the question that o answers to the next.
func (p *Prober) gap(o cluster.Observation) time.Duration {
	switch {
	case o.Reach == cluster.ReachAnswered, o.Reach == cluster.ReachFailed, p.misses > p.timing.Threshold:
		return p.timing.Interval
	case o.Reach == cluster.ReachSilent:
		// A resolver that fails at once is not an answer: silence counts only
		// as fast as time-outs do.
		return max(p.timing.Retry, p.timing.Timeout)
	default:
		return p.timing.Retry
	}
}

// sleep waits until next, or until soonest when nudged.
func (p *Prober) sleep(ctx context.Context, next, soonest time.Time) {
	wait, cancel := context.WithDeadline(ctx, next)
	defer cancel()
	done := make(chan bool, 1)
	go p.awaitNudge(wait, soonest, cancel, done)
	<-done
}

// awaitNudge calls cancel when the member is to be asked before ctx ends, and
// tells nudged, when it is done, whether there was a Nudge.
func (p *Prober) awaitNudge(ctx context.Context, soonest time.Time, cancel context.CancelFunc, nudged chan<- bool) {
	select {
	case <-ctx.Done():
		nudged <- false
		return
	case <-p.nudge:
	}
	timer := time.NewTimer(time.Until(soonest))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
		cancel()
	}
	nudged <- true
}
