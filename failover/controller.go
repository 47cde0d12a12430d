package failover

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"pgfailproxy/cluster"
)

// RecordStore keeps the Record durably.
type RecordStore interface {
	// Record returns the last Record read or stored; zero if there is none.
	Record() cluster.Record
	// Store makes the successor durable.
	Store(cluster.Record) error
}

// Hands carry out on PostgreSQL. Each call ends soon after its context; it may
// be repeated, and then goes on where the last one stopped.
type Hands interface {
	Fence(ctx context.Context, member string) error
	Unfence(ctx context.Context, member string) error
	Drain(ctx context.Context, member string) (cluster.Position, error)
	FenceCommand(ctx context.Context, rec cluster.Record) error
	Promote(ctx context.Context, member string) error
	Verify(ctx context.Context, member string, rec cluster.Record) (cluster.Observation, error)
	// Release lets go of every connection that was kept for a failover.
	Release()
}

// Route is where sessions go. No call may block.
type Route interface {
	Apply(cluster.Record)
	Open(cluster.Epoch, cluster.Addr)
	Suspend()
}

// Options are what a Controller needs. All fields are required.
type Options struct {
	Policy  Policy
	Members []string
	Store   RecordStore
	Hands   Hands
	Route   Route
	// NotYet reports whether an error of Hands only says that time ran out: the
	// step is called again.
	NotYet func(error) bool
	// Refused reports whether an error of Hands says that the server will not do
	// it, however often it is asked.
	Refused func(error) bool
	// Look has a member asked now. It must not block.
	Look func(member string)
	// FenceTimeout bounds one run of the fence command.
	FenceTimeout time.Duration
	Log          *slog.Logger
	Metrics      *Metrics
}

const (
	// stepTimeout bounds one call of a step; short, so that the machine can
	// think anew in between.
	stepTimeout = 2 * time.Second
	// stepPause is the least time that a failing step takes, so that one that
	// fails at once is not repeated without end.
	stepPause = 50 * time.Millisecond
	// kept is how many reports a Status has.
	kept = 10
)

// Status is a snapshot for people and programs. It is never changed after it
// was published.
type Status struct {
	State   State
	Reason  string // why it is not serving; empty when it is
	Since   time.Time
	Record  cluster.Record
	Addr    cluster.Addr // where new sessions go; zero when they wait
	Members []MemberStatus
	Reports []Report // the newest first
}

// MemberStatus is what is known of one member.
type MemberStatus struct {
	Name   string
	Last   cluster.Observation // of any kind
	Good   cluster.Observation // the last answer
	Misses int                 // in a row
}

// Controller is the goroutine that feeds a Machine and carries out what it
// says.
type Controller struct {
	opts     Options
	machine  *Machine
	observed chan cluster.Observation
	orders   chan Action // to the one worker; the machine gives one at a time
	results  chan Event
	reports  []Report // owned by Run
	status   atomic.Pointer[Status]
}

// NewController returns a Controller that goes on from the stored Record. It
// returns an error when that names a member that is not there.
func NewController(opts Options) (*Controller, error) {
	m, err := NewMachine(opts.Policy, opts.Members, opts.Store.Record())
	if err != nil {
		return nil, err
	}
	c := &Controller{opts: opts, machine: m,
		observed: make(chan cluster.Observation),
		orders:   make(chan Action, 1),
		results:  make(chan Event, 1),
	}
	c.publish()
	return c, nil
}

// Status returns the present snapshot.
func (c *Controller) Status() *Status { return c.status.Load() }

// Observe hands an observation to Run. It returns when Run took it or ctx ended.
func (c *Controller) Observe(ctx context.Context, o cluster.Observation) {
	select {
	case c.observed <- o:
	case <-ctx.Done():
	}
}

// Run decides and acts until ctx ends, and returns its cause. What it has begun
// by then stands in the Record; the next start finishes or undoes it.
func (c *Controller) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { c.work(ctx) })
	defer wg.Wait()
	defer close(c.orders)

	if rec := c.machine.Record(); !rec.IsZero() {
		c.opts.Route.Apply(rec)
		c.opts.Log.Info("going on from the record", "member", rec.Primary, "epoch", rec.Epoch,
			"timeline", rec.Timeline, "held", rec.Held, "candidate", rec.Candidate)
	}
	for {
		var ev Event
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case o := <-c.observed:
			ev = Observed{o}
		case ev = <-c.results:
		}
		for _, a := range c.machine.Step(time.Now(), ev) {
			c.act(a)
		}
		c.publish()
	}
}

// act carries out what takes no time and passes on what does.
func (c *Controller) act(a Action) {
	switch a := a.(type) {
	case Publish:
		c.opts.Route.Apply(a.Record)
	case Open:
		c.opts.Route.Open(a.Epoch, a.Addr)
	case Suspend:
		c.opts.Route.Suspend()
	case Look:
		c.opts.Look(a.Member)
	case Say:
		c.opts.Log.LogAttrs(context.Background(), a.Level, a.Text, a.Attrs...)
	case Announce:
		c.announce(a.Report)
	default:
		c.orders <- a // never blocks: the last one was answered
	}
}

func (c *Controller) announce(r Report) {
	c.reports = slices.Insert(c.reports, 0, r)
	c.reports = c.reports[:min(len(c.reports), kept)]
	c.opts.Metrics.failover(r)
	attrs := []any{"from", r.From, "to", r.To, "epoch", r.Epoch, "verdict", string(r.Verdict),
		"bytes_at_risk", r.BytesAtRisk, "seen", r.Seen.String(), "promoted", r.Promoted.String(), "took", r.Took()}
	if !r.SeenAt.IsZero() && r.SeenAt.Before(r.Started) {
		attrs = append(attrs, "seen_before_fault", r.Started.Sub(r.SeenAt))
	}
	for _, p := range r.Phases {
		attrs = append(attrs, "took_"+strings.ReplaceAll(p.Name, " ", "_"), p.Took)
	}
	c.opts.Log.Info("failover report", attrs...)
}

// work carries out orders one after the other.
func (c *Controller) work(ctx context.Context) {
	defer c.opts.Hands.Release()
	for order := range c.orders {
		began := time.Now()
		ev, failed := c.carryOut(ctx, order)
		if failed {
			select {
			case <-time.After(time.Until(began.Add(stepPause))):
			case <-ctx.Done():
			}
		}
		c.results <- ev // never blocks: one order, one result
	}
}

func (c *Controller) carryOut(ctx context.Context, order Action) (ev Event, failed bool) {
	if s, ok := order.(Store); ok {
		err := c.opts.Store.Store(s.Record)
		if err == nil && !s.Record.Held {
			c.opts.Hands.Release()
		}
		return Stored{Err: err}, err != nil
	}
	do := order.(Do)
	limit := stepTimeout
	if do.Step == StepFenceCommand {
		limit = c.opts.FenceTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	done := Done{Step: do.Step, Member: do.Member}
	var err error
	switch do.Step {
	case StepFence:
		err = c.opts.Hands.Fence(ctx, do.Member)
	case StepUnfence:
		err = c.opts.Hands.Unfence(ctx, do.Member)
	case StepDrain:
		done.Position, err = c.opts.Hands.Drain(ctx, do.Member)
	case StepFenceCommand:
		err = c.opts.Hands.FenceCommand(ctx, do.Record)
	case StepPromote:
		err = c.opts.Hands.Promote(ctx, do.Member)
	case StepVerify:
		done.Observation, err = c.opts.Hands.Verify(ctx, do.Member, do.Record)
	default:
		err = errors.New("unknown step " + string(do.Step))
	}
	done.Final = err == nil
	done.Refused = err != nil && c.opts.Refused(err)
	// An error may say both, at the end of its time: then it is one.
	if err != nil && (done.Refused || do.Step == StepFenceCommand || !c.opts.NotYet(err)) {
		done.Err = err
	}
	return done, err != nil
}

// publish makes the present state visible.
func (c *Controller) publish() {
	m := c.machine
	s := &Status{State: m.state, Reason: m.reason, Since: m.since, Record: m.rec, Addr: m.opened, Reports: slices.Clone(c.reports)}
	for _, name := range m.members {
		v := m.views[name]
		s.Members = append(s.Members, MemberStatus{Name: name, Last: v.last, Good: v.good, Misses: v.misses})
	}
	c.status.Store(s)
	c.opts.Metrics.set(s)
}
