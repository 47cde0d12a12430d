package failover

import (
	"fmt"
	"log/slog"
	"slices"
	"time"

	"pgfailproxy/cluster"
)

// giveUp goes on without a candidate: with the next, or back to the old
// primary, or not at all.
func (m *Machine) giveUp(member, why string) {
	m.attempt.failed[member] = why
	m.say(slog.LevelError, "candidate given up", slog.String("member", member), slog.String("cause", why))
	if m.undoIfBack() {
		return
	}
	candidate, refused := m.choose()
	if candidate == "" {
		m.retryAt = m.now.Add(m.policy.RetryEvery)
		m.becomeHalted(fmt.Sprintf("%s is gone (%s) and no standby can take over: %s", m.attempt.from, m.attempt.cause, refused))
		return
	}
	m.becomeDraining(candidate)
}

// resume is for a held Record while nothing is under way: after a start, or
// after all candidates failed.
func (m *Machine) resume() {
	// A candidate that was promoted after all is the new primary: no other can
	// be made one without losing what it may have.
	if c := m.views[m.rec.Candidate]; m.rec.Candidate != "" && c.last.Healthy() && c.last.System == m.rec.System &&
		c.last.Role == cluster.RolePrimary && c.last.Position.Timeline > m.rec.Timeline {
		m.become(Promoting, fmt.Sprintf("no primary: %s is being verified", m.rec.Candidate))
		m.begin(m.rec.Candidate)
		m.step(StepVerify, m.rec.Candidate)
		return
	}
	if m.undoIfBack() {
		return
	}
	old := m.views[m.rec.Primary]
	cause, dead := old.dead(m.now, m.rec, m.policy)
	if !dead || m.now.Before(m.retryAt) {
		if old.last.Reach == cluster.ReachFailed || old.last.Reach == cluster.ReachFull {
			m.becomeHalted(fmt.Sprintf("%s was given up and runs again, but it cannot be verified (%s): mend that and it is served again, or stop it and a standby takes over", m.rec.Primary, old.last.Err))
		}
		return
	}
	m.attempt.failed = map[string]string{}
	candidate, refused := m.choose()
	if candidate == "" {
		m.retryAt = m.now.Add(m.policy.RetryEvery)
		m.becomeHalted(fmt.Sprintf("%s is gone (%s) and no standby can take over: %s", m.attempt.from, cause, refused))
		return
	}
	m.becomeDraining(candidate)
}

// undoIfBack keeps the old primary if it answers again as it was: nobody was
// served since it was given up, so that loses nothing, which a promotion cannot
// promise. The answer is newer than the misses that had it given up: older ones
// are not taken. It reports whether it does so.
func (m *Machine) undoIfBack() bool {
	o := m.views[m.rec.Primary].last
	if !o.Serves(m.rec) {
		return false
	}
	m.become(Holding, m.rec.Primary+" is back and is kept")
	m.store(m.next(func(r *cluster.Record) {
		r.Held, r.Candidate, r.Drained = false, "", cluster.Position{}
	}))
	return true
}

// undone: the old primary is served again.
func (m *Machine) undone() {
	m.say(slog.LevelWarn, "failover undone: the old primary answers again and is kept",
		slog.String("member", m.rec.Primary), slog.Uint64("epoch", uint64(m.rec.Epoch)), m.phase("undo"))
	m.announce(VerdictZero, cluster.Position{}, 0)
	m.become(Suspecting, m.rec.Primary+" is not verified yet")
	if v := m.views[m.rec.Primary]; v.last.Serves(m.rec) {
		m.become(Serving, "")
		m.judgePrimary(v)
	}
	m.attempt, m.unfenceAt = attempt{}, time.Time{}
	m.think()
}

// unfenced goes on with the standbys that were fenced in vain: each gets its WAL
// receiver back, or is tried again after a while for as long as it takes.
func (m *Machine) unfenced(ev Done) {
	m.unfence = slices.DeleteFunc(m.unfence, func(name string) bool { return name == ev.Member })
	if ev.Err == nil && ev.Final {
		delete(m.told, ev.Member)
		m.say(slog.LevelInfo, "standby sent back to streaming", slog.String("member", ev.Member))
		return
	}
	m.unfence = append(m.unfence, ev.Member)
	m.unfenceAt = m.now.Add(m.policy.RetryEvery)
	if ev.Err != nil && !m.told[ev.Member] {
		m.told[ev.Member] = true
		m.say(slog.LevelWarn, "a standby that was made ready in vain cannot be sent back to streaming yet",
			slog.String("member", ev.Member), slog.String("cause", ev.Err.Error()))
	}
}

// finished: the new primary is recorded, and served from here on.
func (m *Machine) finished(before cluster.Record) {
	m.seen, m.seenAt = m.rec.Seen, m.rec.SeenAt
	m.judgePrimary(m.views[m.rec.Primary])
	m.phase("switch")
	var lost uint64
	if !before.Drained.IsZero() {
		lost = before.Drained.LSN.Behind(m.attempt.seen.LSN)
	}
	verdict := VerdictUnknown
	if lost > 0 {
		verdict = VerdictAtRisk
	}
	took := m.announce(verdict, before.Drained, lost)
	m.say(slog.LevelWarn, "failover done: sessions go to the new primary",
		slog.String("from", before.Primary), slog.String("member", m.rec.Primary),
		slog.Uint64("epoch", uint64(m.rec.Epoch)), slog.Uint64("timeline", uint64(m.rec.Timeline)), slog.Duration("took", took))
	m.unfence = slices.DeleteFunc(m.unfence, func(name string) bool { return name == m.rec.Primary })
	m.attempt, m.unfenceAt = attempt{}, time.Time{}
	clear(m.told)
	m.become(Serving, "")
	m.think()
}

// announce reports the failover that ended, and returns how long it took.
func (m *Machine) announce(verdict Verdict, drained cluster.Position, atRisk uint64) time.Duration {
	a := m.attempt
	r := Report{
		Epoch: m.rec.Epoch, From: a.from, To: m.rec.Primary, Cause: a.cause,
		Started: a.started, Phases: a.phases,
		Seen: a.seen, SeenAt: a.seenAt, Promoted: drained, BytesAtRisk: atRisk, Verdict: verdict,
	}
	m.do(Announce{r})
	return r.Took()
}
