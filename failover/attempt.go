package failover

import (
	"fmt"
	"log/slog"
	"slices"
	"time"

	"pgfailproxy/cluster"
)

// attempt is a failover under way.
type attempt struct {
	from, candidate string
	cause           string
	started         time.Time // the first sign of trouble
	lap             time.Time // the end of the last phase
	phases          []Phase
	seen            cluster.Position // last seen on from
	seenAt          time.Time
	drained         map[string]cluster.Position
	failed          map[string]string // members given up as candidates, and why
	progress        time.Time         // when the present step last got on
	position        cluster.Position  // how far it was then
	failing         time.Time         // when it first failed since it last did not
}

func newAttempt(rec cluster.Record, cause string, started time.Time) attempt {
	return attempt{from: rec.Primary, cause: cause, started: started, lap: started, seen: rec.Seen, seenAt: rec.SeenAt,
		drained: map[string]cluster.Position{}, failed: map[string]string{}}
}

// phase ends a phase of the failover and returns how long it took.
func (m *Machine) phase(name string) slog.Attr {
	took := m.now.Sub(m.attempt.lap)
	if m.attempt.lap.IsZero() {
		took = 0
	}
	m.attempt.lap = m.now
	m.attempt.phases = append(m.attempt.phases, Phase{name, took})
	return slog.Duration("took", took)
}

// becomeHolding: the primary is dead and a candidate is there. Before anything
// is done that cannot be undone, the intent is made durable.
func (m *Machine) becomeHolding(candidate, cause string, v *view) {
	m.become(Holding, fmt.Sprintf("%s is given up: %s", m.rec.Primary, cause))
	m.attempt = newAttempt(m.rec, cause, v.trouble)
	m.attempt.seen, m.attempt.seenAt = m.seen, m.seenAt
	m.attempt.candidate = candidate
	m.say(slog.LevelWarn, "primary declared dead; failing over", slog.String("member", m.rec.Primary),
		slog.String("candidate", candidate), slog.String("cause", cause), m.phase("detect"))
	m.store(m.next(func(r *cluster.Record) { r.Epoch++; r.Held = true }))
}

// becomeDraining: the Record is held and published. The candidate is cut off
// from the old primary and drained.
func (m *Machine) becomeDraining(candidate string) {
	m.become(Draining, fmt.Sprintf("no primary: %s was given up, %s is made ready", m.rec.Primary, candidate))
	m.begin(candidate)
	m.step(StepFence, candidate)
}

// begin turns to a candidate.
func (m *Machine) begin(candidate string) {
	if m.attempt.started.IsZero() { // taken up after a restart
		m.attempt.started, m.attempt.lap = m.now, m.now
	}
	m.attempt.candidate = candidate
	m.attempt.progress, m.attempt.position, m.attempt.failing = m.now, cluster.Position{}, time.Time{}
}

// gotOn notes how far a candidate's replay is.
func (m *Machine) gotOn(p cluster.Position) {
	if p.LSN > m.attempt.position.LSN {
		m.attempt.position, m.attempt.progress = p, m.now
	}
}

// becomePromoting: the candidate is drained and fit. Its name is made durable
// before pg_promote is called, because from then on it may become a primary at
// any moment, whatever happens to us.
func (m *Machine) becomePromoting() {
	m.become(Promoting, fmt.Sprintf("no primary: %s is being promoted", m.attempt.candidate))
	m.attempt.progress = m.now
	m.store(m.next(func(r *cluster.Record) {
		r.Candidate, r.Drained = m.attempt.candidate, m.attempt.drained[m.attempt.candidate]
	}))
}

// stored goes on after a Record was written, or not.
func (m *Machine) stored(ev Stored) {
	if ev.Err != nil {
		m.say(slog.LevelError, "the record cannot be written", slog.String("cause", ev.Err.Error()))
		m.notStored(ev.Err)
		return
	}
	before := m.rec
	m.rec = m.wanted
	m.do(Publish{m.rec})
	switch {
	case before.IsZero():
		m.say(slog.LevelInfo, "primary found and recorded", slog.String("member", m.rec.Primary), slog.String("lsn", m.seen.LSN.String()))
		m.think()
	case !before.Held && m.rec.Held:
		m.say(slog.LevelInfo, "intent recorded; sessions on the old primary ended",
			slog.Uint64("epoch", uint64(m.rec.Epoch)), slog.String("member", m.rec.Primary), m.phase("hold"))
		m.becomeDraining(m.attempt.candidate)
	case m.rec.Held:
		m.say(slog.LevelInfo, "candidate recorded", slog.Uint64("epoch", uint64(m.rec.Epoch)),
			slog.String("candidate", m.rec.Candidate), m.phase("record"))
		if m.policy.FenceCommand {
			m.step(StepFenceCommand, m.attempt.from)
		} else {
			m.step(StepPromote, m.rec.Candidate)
		}
	case before.Held && m.rec.Primary != before.Primary:
		m.finished(before)
	case before.Held:
		m.undone()
	default:
		m.think() // only the position was refreshed
	}
}

// notStored: nothing was changed by us yet that the Record does not say, so it
// is safe to stay where we are and try again.
func (m *Machine) notStored(err error) {
	m.retryAt = m.now.Add(m.policy.RetryEvery)
	if m.state == Serving {
		return // only the position was to be refreshed
	}
	m.becomeHalted(fmt.Sprintf("the record cannot be written (%v): make room or mend its folder", err))
}

// done goes on after a step on PostgreSQL.
func (m *Machine) done(ev Done) {
	switch ev.Step {
	case StepFence:
		m.fenced(ev)
	case StepDrain:
		m.drained(ev)
	case StepFenceCommand:
		if ev.Err != nil {
			m.retryAt = m.now.Add(m.policy.RetryEvery)
			m.becomeHalted(fmt.Sprintf("the fence command did not succeed (%v), so %s may still be running and nothing is promoted: stop it, and see to the command", ev.Err, m.attempt.from))
			return
		}
		m.say(slog.LevelInfo, "fence command succeeded", slog.String("member", m.attempt.from), m.phase("fence command"))
		m.step(StepPromote, m.rec.Candidate)
	case StepPromote:
		m.promoted(ev)
	case StepVerify:
		m.verified(ev)
	case StepUnfence:
		m.unfenced(ev)
		m.think()
	}
}

func (m *Machine) fenced(ev Done) {
	if !slices.Contains(m.unfence, ev.Member) {
		m.unfence = append(m.unfence, ev.Member) // should it all be in vain
	}
	switch {
	case ev.Refused:
		// Asynchronous durability promises nothing that the old primary could
		// break by reaching the standby a moment longer.
		m.say(slog.LevelWarn, "the candidate's WAL receiver was not stopped; going on without",
			slog.String("member", ev.Member), slog.String("cause", ev.Err.Error()))
		m.phase("fence")
	case ev.Err != nil || !ev.Final:
		// A receiver ends only when what it received is replayed.
		o := m.views[ev.Member].last
		m.gotOn(cluster.Position{Timeline: o.Position.Timeline, LSN: o.Replayed})
		if why := m.hopeless(ev, m.policy.DrainTimeout); why != "" {
			m.giveUp(ev.Member, "its WAL receiver could not be stopped: "+why)
			return
		}
		if !m.undoIfBack() {
			m.step(StepFence, ev.Member)
		}
		return
	default:
		m.say(slog.LevelInfo, "candidate fenced: it receives no more WAL", slog.String("member", ev.Member), m.phase("fence"))
	}
	m.begin(ev.Member)
	m.step(StepDrain, ev.Member)
}

func (m *Machine) drained(ev Done) {
	if m.undoIfBack() {
		return
	}
	if ev.Err != nil || !ev.Final {
		m.gotOn(ev.Position)
		if why := m.hopeless(ev, m.policy.DrainTimeout); why != "" {
			m.giveUp(ev.Member, fmt.Sprintf("its replay does not get beyond %s: %s", m.attempt.position, why))
			return
		}
		m.step(StepDrain, ev.Member)
		return
	}
	m.attempt.drained[ev.Member] = ev.Position
	lag := ev.Position.LSN.Behind(m.seen.LSN)
	m.say(slog.LevelInfo, "candidate drained: all that it received is replayed", slog.String("member", ev.Member),
		slog.String("lsn", ev.Position.LSN.String()), slog.Uint64("bytes_at_risk", lag), m.phase("drain"))
	if why := m.tooFarBehind(ev.Position.LSN); why != "" {
		m.giveUp(ev.Member, why)
		return
	}
	if other := m.promotedByOthers(); other != "" {
		m.giveUp(ev.Member, other+" was promoted meanwhile, not by us")
		return
	}
	// Others may have got on in the meantime: the furthest of all is promoted.
	best, _ := m.choose()
	switch {
	case best != "" && best != ev.Member && m.position(best) > ev.Position.LSN:
		m.say(slog.LevelInfo, "another standby has more", slog.String("member", best))
		m.becomeDraining(best)
	default:
		m.becomePromoting()
	}
}

func (m *Machine) promoted(ev Done) {
	if ev.Err == nil && ev.Final {
		m.say(slog.LevelInfo, "candidate promoted", slog.String("member", ev.Member), m.phase("promote"))
		m.step(StepVerify, ev.Member)
		return
	}
	m.again(ev, "its promotion did not end")
}

func (m *Machine) verified(ev Done) {
	if ev.Err != nil || !ev.Final {
		m.again(ev, "it was promoted but cannot be used")
		return
	}
	o := ev.Observation
	m.views[ev.Member].take(o, m.rec)
	m.say(slog.LevelInfo, "new primary verified: it takes writes", slog.String("member", ev.Member),
		slog.Uint64("timeline", uint64(o.Position.Timeline)), m.phase("verify"))
	m.store(m.next(func(r *cluster.Record) {
		r.Held, r.Candidate, r.Drained = false, "", cluster.Position{}
		r.Primary, r.Timeline = ev.Member, o.Position.Timeline
		r.Seen, r.SeenAt = o.Position, o.Asked
	}))
}

// again repeats a step that did not succeed, unless that is hopeless.
func (m *Machine) again(ev Done, what string) {
	if why := m.hopeless(ev, m.policy.PromoteTimeout); why != "" {
		m.giveUp(ev.Member, what+": "+why)
		return
	}
	m.step(ev.Step, ev.Member)
}

// hopeless says why there is no more sense in waiting for a candidate that did
// not end a step; empty while there is. limit is how long it may make no
// progress.
func (m *Machine) hopeless(ev Done, limit time.Duration) string {
	last := ""
	switch {
	case ev.Err == nil:
		m.attempt.failing = time.Time{}
	case m.attempt.failing.IsZero():
		m.attempt.failing = m.now
	}
	if ev.Err != nil {
		last = ", the last error: " + ev.Err.Error()
	}
	// Before it is recorded, another may be as good, and is not tried yet.
	early := ev.Step == StepFence || ev.Step == StepDrain
	switch v := m.views[ev.Member]; {
	case ev.Refused:
		return ev.Err.Error()
	case v.misses >= m.policy.Threshold:
		return "it does not answer any more: " + v.last.Err
	case early && ev.Err != nil && m.now.Sub(m.attempt.failing) >= m.policy.ErrorTimeout:
		return fmt.Sprintf("nothing but errors for %s%s", m.policy.ErrorTimeout, last)
	case m.now.Sub(m.attempt.progress) >= limit:
		return fmt.Sprintf("no progress for %s%s", limit, last)
	}
	return ""
}
