package proxy

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"pgfailproxy/cluster"
)

// Route is where a session may go, for as long as its context lives.
type Route struct {
	Epoch  cluster.Epoch
	Member string
	// Addr is where the member was verified to be the primary.
	Addr cluster.Addr

	term *term
}

// Context ends, with a *GoneError as its cause, when the member is given up.
func (r *Route) Context() context.Context { return r.term.ctx }

// place is what sessions see. It is immutable.
type place struct {
	route   *Route // nil: wait
	running *Route // where sessions of the term run; nil if none ever did
	reason  string // why there is none
	changed chan struct{}
}

// RouterOptions are the choices for a Router.
type RouterOptions struct {
	// ReleaseRate is how many waiting sessions may go on per second once there
	// is a primary. 0 means all at once.
	ReleaseRate int
	// OnDoubt is told when a session could not reach a member. It must not
	// block. It may be nil.
	OnDoubt func(member string)
	// Log gets a line when a failover has ended sessions. nil means none.
	Log *slog.Logger
}

// Router says where sessions go. Apply, Open and Suspend are called by whoever
// decides; the rest by sessions.
type Router struct {
	opts    RouterOptions
	line    *semaphore.Weighted // of 1: a lock that is given in the order of asking
	release *rate.Limiter
	now     atomic.Pointer[place]

	mu   sync.Mutex // guards what follows, and writing now
	rec  cluster.Record
	term *term // nil before the first serving Record and while held
}

// NewRouter returns a Router with which every session waits.
func NewRouter(opts RouterOptions) *Router {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	r := &Router{opts: opts, line: semaphore.NewWeighted(1), release: rate.NewLimiter(rate.Inf, 1)}
	if opts.ReleaseRate > 0 {
		// What may go at once is a tenth of what may go in a second: the first
		// ones need not wait, and a new primary is not stormed.
		r.release = rate.NewLimiter(rate.Limit(opts.ReleaseRate), max(1, opts.ReleaseRate/10))
	}
	r.now.Store(&place{reason: "no primary is known yet", changed: make(chan struct{})})
	return r
}

// Apply takes a Record over, if it is newer than the one before. When that gives
// up a member, new sessions wait from then on, and then the member's Routes end.
func (r *Router) Apply(rec cluster.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !rec.Newer(r.rec) {
		return
	}
	before := r.rec
	r.rec = rec
	if !rec.Held && r.term != nil && rec.Epoch == before.Epoch && rec.Primary == before.Primary {
		return
	}
	old := r.term
	r.term = nil
	if !rec.Held {
		r.term = newTerm(rec.Primary, rec.Epoch, r.opts.Log)
	}
	reason := rec.Primary + " is not verified yet"
	if rec.Held {
		reason = rec.Primary + " was given up, and its successor is not ready yet"
	}
	r.put(nil, reason)
	if old != nil { // publish first, then withdraw: who is woken finds the newer
		old.end(&GoneError{Member: before.Primary, At: time.Now()})
	}
}

// Open lets sessions go to the primary of an epoch, which was verified at addr.
// It does nothing if the Record is held or of another epoch.
func (r *Router) Open(epoch cluster.Epoch, addr cluster.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.term == nil || r.rec.Epoch != epoch {
		return
	}
	if route := r.now.Load().route; route != nil && route.term == r.term && route.Addr == addr {
		return
	}
	r.term.survived()
	r.put(&Route{Epoch: epoch, Member: r.rec.Primary, Addr: addr, term: r.term}, "")
}

// Suspend has new sessions wait until Open; those that exist go on.
func (r *Router) Suspend() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.term != nil {
		// Who reads this has not even logged in: what exactly we were told by the
		// server is in the log and the status.
		r.put(nil, r.rec.Primary+" is in doubt")
	}
}

// put publishes a place. r.mu is held.
func (r *Router) put(route *Route, reason string) {
	old := r.now.Load()
	running := route
	if running == nil && old.running != nil && old.running.term == r.term {
		running = old.running
	}
	r.now.Store(&place{route: route, running: running, reason: reason, changed: make(chan struct{})})
	close(old.changed)
}

// Running returns the Route of the sessions that exist, also while new ones have
// to wait; nil if there is none.
func (r *Router) Running() *Route {
	p := r.now.Load()
	if p.route == nil && p.running != nil && p.running.term.running() == 0 {
		return nil // nothing proves that the member is still what it was
	}
	return p.running
}

// Current returns the present Route, or nil and why there is none.
func (r *Router) Current() (*Route, string) {
	p := r.now.Load()
	return p.route, p.reason
}

// Await returns the present Route, or waits until there is one. Those who have
// to wait stand in line: the first in it is let go first, and one after the
// other at ReleaseRate. It returns ctx's cause when that ends first.
func (r *Router) Await(ctx context.Context) (*Route, error) {
	if route := r.now.Load().route; route != nil {
		return route, nil
	}
	// Only the head of the line looks, so that a change wakes one and not all.
	if r.line.Acquire(ctx, 1) != nil {
		return nil, context.Cause(ctx)
	}
	defer r.line.Release(1)
	for {
		p := r.now.Load()
		if p.route == nil {
			select {
			case <-p.changed:
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
			continue
		}
		if r.release.Wait(ctx) != nil {
			// The limiter gives up early when the turn would come too late.
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}
		if p = r.now.Load(); p.route != nil {
			return p.route, nil
		}
	}
}

// changed returns a channel that is closed when something else is published
// than route, and at once if something is already.
func (r *Router) changed(route *Route) <-chan struct{} {
	p := r.now.Load()
	if p.route != route {
		done := make(chan struct{})
		close(done)
		return done
	}
	return p.changed
}

// Doubt tells that a session could not reach route's member.
func (r *Router) Doubt(route *Route) {
	if r.opts.OnDoubt != nil && r.now.Load().route == route {
		r.opts.OnDoubt(route.Member)
	}
}
