package failover

import (
	"fmt"
	"log/slog"
	"slices"
	"time"

	"pgfailproxy/cluster"
)

// State is what the machine is about.
type State string

const (
	// Starting: no Record yet; the members are looked at.
	Starting State = "starting"
	// Serving: the primary of the Record is verified; sessions go there.
	Serving State = "serving"
	// Suspecting: the primary is not verified at the moment, or not yet. New
	// sessions wait, those that exist go on. Nothing was given up.
	Suspecting State = "suspecting"
	// Holding: the primary is declared dead and a candidate is at hand; the
	// intent to give it up is being recorded. Then its sessions are ended. Or it
	// is back in time, and it is being recorded that it is kept.
	Holding State = "holding"
	// Draining: the candidate is cut off from the old primary and replays what
	// it has. Until a candidate is recorded, a primary that comes back is kept.
	Draining State = "draining"
	// Promoting: the candidate is recorded, and is being promoted and verified.
	Promoting State = "promoting"
	// Halted: nothing can be done without a change from outside. The reason is
	// a sentence that a person can act on. The machine goes on looking, and
	// leaves this state by itself when it can.
	Halted State = "halted"
)

// Policy is what an operator wants.
type Policy struct {
	// Threshold is after how many misses in a row a primary is declared dead.
	Threshold int
	// StartTimeout is how long a primary may say that it is starting up before
	// it is declared dead.
	StartTimeout time.Duration
	// MaxLagBytes is how much WAL a candidate may lack of what was last seen on
	// the primary. Zero: none.
	MaxLagBytes uint64
	// DrainTimeout is how long a candidate's replay may stand still before it
	// is given up.
	DrainTimeout time.Duration
	// ErrorTimeout is how long a candidate may answer with errors to the steps
	// before its promotion, before the next is tried.
	ErrorTimeout time.Duration
	// PromoteTimeout is how long a promotion may take before the candidate is
	// given up.
	PromoteTimeout time.Duration
	// FenceCommand says that there is one.
	FenceCommand bool
	// RetryEvery is how long after a failed attempt the next one may begin.
	RetryEvery time.Duration
	// FirstLook is how long a member that does not answer is waited for before
	// the first Record is written without it. There is no hurry then, and it may
	// be the one that counts.
	FirstLook time.Duration
	// SeenEvery is how old the position in a serving Record may get while the
	// primary writes. It costs one durable write each time.
	SeenEvery time.Duration
}

// Machine decides. Step is its only entrance; it keeps no pointer to anything
// that another goroutine knows.
type Machine struct {
	policy  Policy
	members []string // in the order of the configuration
	views   map[string]*view

	state  State
	reason string
	since  time.Time
	rec    cluster.Record // the stored one
	opened cluster.Addr   // where sessions go; zero when new sessions wait
	seen   cluster.Position
	seenAt time.Time

	busy      bool            // a Store or Do is under way
	wanted    cluster.Record  // the Record that is being stored
	retryAt   time.Time       // no attempt begins before
	attempt   attempt         // the failover under way
	unfenceAt time.Time       // when the first of unfence is tried again
	unfence   []string        // standbys that were fenced in vain
	told      map[string]bool // of these, whose failure was logged

	now time.Time
	out []Action
}

// NewMachine returns a Machine for the members, in the order of the
// configuration, that goes on from rec, which is zero on the first start. It
// returns an error when rec names a member that is not there.
func NewMachine(policy Policy, members []string, rec cluster.Record) (*Machine, error) {
	m := &Machine{policy: policy, members: members, views: map[string]*view{}, told: map[string]bool{}, rec: rec, seen: rec.Seen, seenAt: rec.SeenAt}
	for _, name := range members {
		m.views[name] = &view{}
	}
	for _, name := range []string{rec.Primary, rec.Candidate} {
		if name != "" && m.views[name] == nil {
			return nil, fmt.Errorf("the record says %s, but no member is called %q: add it to the members, or, once you are sure which server is the primary, move the record file away", rec, name)
		}
	}
	switch {
	case rec.IsZero():
		m.state, m.reason = Starting, "looking for the primary"
	case rec.Held:
		// Nothing was served since the Record was held: finish or undo.
		m.state, m.reason = Halted, "a failover from "+rec.Primary+" was interrupted and is taken up again"
		m.attempt = newAttempt(rec, "interrupted failover", time.Time{})
		for _, name := range members { // whichever of them was fenced
			if name != rec.Primary {
				m.unfence = append(m.unfence, name)
			}
		}
	default:
		m.state, m.reason = Suspecting, rec.Primary+" is not verified yet"
	}
	return m, nil
}

// Record returns the Record in force.
func (m *Machine) Record() cluster.Record { return m.rec }

// Step takes one event and returns what is to be done, in that order. now must
// not go backwards.
func (m *Machine) Step(now time.Time, ev Event) []Action {
	m.now, m.out = now, nil
	if m.since.IsZero() {
		m.since = now
	}
	switch ev := ev.(type) {
	case Observed:
		m.observe(ev.Observation)
	case Stored:
		m.busy = false
		m.stored(ev)
	case Done:
		m.busy = false
		m.done(ev)
	}
	return m.out
}

// observe takes note, keeps the proof that the route stands on, and thinks.
func (m *Machine) observe(o cluster.Observation) {
	v := m.views[o.Member]
	if v == nil || o.Asked.Before(v.last.Asked) {
		return // an answer to an older question than one that was answered
	}
	v.take(o, m.rec)
	if o.Member == m.rec.Primary {
		m.judgePrimary(v)
	}
	m.think()
}

// think does what the state asks for, unless something is under way.
func (m *Machine) think() {
	if m.busy {
		return
	}
	switch {
	case m.rec.IsZero():
		m.discover()
	case !m.rec.Held:
		m.watch()
	case m.state == Halted:
		m.resume()
	}
}

// judgePrimary opens the route while the last answer proves the primary, and
// suspends it when that proof has lapsed.
func (m *Machine) judgePrimary(v *view) {
	if m.rec.Held || m.state == Holding {
		return // given up, or about to be
	}
	why := v.last.WhyNot(m.rec)
	if why == "" {
		if p := v.last.Position; p.LSN > m.seen.LSN || p.Timeline != m.seen.Timeline {
			m.seen = p
		}
		m.seenAt = v.last.Asked
		if m.opened != v.last.Addr {
			m.opened = v.last.Addr
			m.do(Open{Epoch: m.rec.Epoch, Member: m.rec.Primary, Addr: v.last.Addr})
		}
		return
	}
	m.suspend(why)
}

func (m *Machine) suspend(why string) {
	if m.opened != (cluster.Addr{}) {
		m.opened = cluster.Addr{}
		m.do(Suspend{Reason: why})
	}
}

// watch is for a serving Record: is its primary there, and if not, is it dead?
func (m *Machine) watch() {
	v := m.views[m.rec.Primary]
	if v.last.Serves(m.rec) {
		if m.state != Serving {
			m.becomeServing(v)
		}
		there := func(name string) bool { return m.views[name].last.Healthy() }
		if i := slices.IndexFunc(m.unfence, there); i >= 0 && !m.now.Before(m.unfenceAt) {
			m.step(StepUnfence, m.unfence[i])
			return
		}
		m.refreshSeen()
		return
	}
	if m.state == Serving || m.state == Suspecting {
		m.becomeSuspecting(v)
	}
	cause, dead := v.dead(m.now, m.rec, m.policy)
	if !dead || m.now.Before(m.retryAt) {
		return
	}
	candidate, refused := m.choose()
	if candidate == "" {
		m.becomeHalted(fmt.Sprintf("%s is gone (%s) and no standby can take over: %s", m.rec.Primary, cause, refused))
		return
	}
	m.becomeHolding(candidate, cause, v)
}

// promotedByOthers returns a member that continued the Record's history as a
// primary without us: whoever promoted it had a reason, and to promote another
// would make that two.
func (m *Machine) promotedByOthers() string {
	for _, name := range m.members {
		o := m.views[name].last
		ours := name == m.rec.Candidate || m.attempt.failed[name] != ""
		if !ours && o.Healthy() && o.System == m.rec.System && o.Role == cluster.RolePrimary && o.Position.Timeline > m.rec.Timeline {
			return name
		}
	}
	return ""
}

// refreshSeen keeps the position in the Record young, for a start after a crash
// in which the primary is not seen again.
func (m *Machine) refreshSeen() {
	if m.seen == m.rec.Seen || m.now.Sub(m.rec.SeenAt) < m.policy.SeenEvery || m.now.Before(m.retryAt) {
		return
	}
	m.store(m.next(func(r *cluster.Record) {}))
}

// next returns the successor of the Record in force.
func (m *Machine) next(change func(*cluster.Record)) cluster.Record {
	r := m.rec
	r.Revision++
	r.Seen, r.SeenAt = m.seen, m.seenAt
	change(&r)
	return r
}

func (m *Machine) store(r cluster.Record) {
	m.busy, m.wanted = true, r
	m.do(Store{r})
}

func (m *Machine) step(s Step, member string) {
	m.busy = true
	m.do(Do{Step: s, Member: member, Record: m.rec})
}

func (m *Machine) do(a Action) { m.out = append(m.out, a) }

func (m *Machine) say(level slog.Level, text string, attrs ...slog.Attr) {
	m.do(Say{Level: level, Text: text, Attrs: attrs})
}

func (m *Machine) become(s State, reason string) {
	if m.state != s {
		m.since = m.now
	}
	m.state, m.reason = s, reason
}

// becomeServing: the Record is serving and its primary is verified.
func (m *Machine) becomeServing(v *view) {
	r := m.rec
	m.say(slog.LevelInfo, "primary is verified; sessions go there",
		slog.String("member", r.Primary), slog.Uint64("epoch", uint64(r.Epoch)), slog.Uint64("timeline", uint64(r.Timeline)))
	m.become(Serving, "")
	m.judgePrimary(v)
}

// becomeSuspecting: nothing is given up, but new sessions wait.
func (m *Machine) becomeSuspecting(v *view) {
	why := v.last.WhyNot(m.rec)
	if m.state == Serving {
		m.say(slog.LevelWarn, "primary in doubt; new sessions wait",
			slog.String("member", m.rec.Primary), slog.String("cause", why))
		// What is known of the standbys is up to an interval old: by the time
		// that one of them is needed it shall not be.
		for _, name := range m.members {
			if name != m.rec.Primary {
				m.do(Look{name})
			}
		}
	}
	m.become(Suspecting, why)
}

// becomeHalted: the reason is logged when it changes, not each time.
func (m *Machine) becomeHalted(reason string) {
	if m.state != Halted || m.reason != reason {
		m.say(slog.LevelError, "halted: "+reason, slog.String("member", m.rec.Primary))
	}
	m.become(Halted, reason)
}
