package failover

import (
	"fmt"
	"strings"
	"time"

	"pgfailproxy/cluster"
)

// view is what is known of one member.
type view struct {
	last   cluster.Observation // of any kind
	good   cluster.Observation // the last answer
	misses int                 // in a row
	wrong  int                 // answers in a row that were not those of the Record's primary
	// trouble is when the first sign of it was seen since the last good answer.
	trouble time.Time
	// starting is when it first said that it starts up since the last answer.
	starting time.Time
	// timeline is the highest that the member showed since it last proved it:
	// what a standby shows is exact while it streams, else a lower bound that
	// may be smaller after a restart.
	timeline cluster.TimelineID
}

func (v *view) take(o cluster.Observation, rec cluster.Record) {
	v.last = o
	if o.Reach.Miss() {
		v.misses++
	} else if o.Reach != cluster.ReachLost {
		v.misses = 0
	}
	switch {
	case o.Healthy():
		v.good = o
		v.starting = time.Time{}
		if o.Streaming || o.Role == cluster.RolePrimary || v.timeline < o.Position.Timeline {
			v.timeline = o.Position.Timeline
		}
	case o.Reach == cluster.ReachStarting && v.starting.IsZero():
		v.starting = o.Asked
	}
	if o.Healthy() && o.Member == rec.Primary && !o.Serves(rec) {
		v.wrong++
	} else if o.Healthy() {
		v.wrong = 0
	}
	if o.Healthy() && v.wrong == 0 {
		v.trouble = time.Time{}
	} else if v.trouble.IsZero() {
		v.trouble = o.Asked
	}
}

// dead reports whether the primary of rec is to be given up, and why.
func (v *view) dead(now time.Time, rec cluster.Record, p Policy) (string, bool) {
	switch {
	case v.misses >= p.Threshold:
		return fmt.Sprintf("%d misses in a row, the last: %s", p.Threshold, v.last.Err), true
	case v.wrong >= p.Threshold:
		return v.good.WhyNot(rec), true
	case !v.starting.IsZero() && now.Sub(v.starting) >= p.StartTimeout:
		return fmt.Sprintf("it has been starting up for %s", p.StartTimeout), true
	}
	return "", false
}

// heard reports whether a member answered, or was waited for long enough to
// write the first Record without it.
func (v *view) heard(now time.Time, p Policy) bool {
	switch v.last.Reach {
	case cluster.ReachAnswered:
		return true
	case cluster.ReachNone:
		return false
	case cluster.ReachStarting:
		return now.Sub(v.starting) >= p.StartTimeout
	}
	return now.Sub(v.trouble) >= p.FirstLook
}

// unfit says why a member cannot be the candidate to follow the Record's
// primary; empty if it can.
func (m *Machine) unfit(name string) string {
	v := m.views[name]
	o := v.last
	switch {
	case name == m.rec.Primary:
		return "it is the primary that is given up"
	case m.attempt.failed[name] != "":
		return m.attempt.failed[name]
	case o.Reach == cluster.ReachNone:
		return "it has not answered yet"
	case !o.Healthy():
		return o.Err
	case o.System != m.rec.System:
		return fmt.Sprintf("it belongs to another database cluster (system identifier %d, the record's is %d)", o.System, m.rec.System)
	case o.Role != cluster.RoleStandby:
		return fmt.Sprintf("it is writable on timeline %d, not a standby", o.Position.Timeline)
	case v.timeline < m.rec.Timeline:
		return fmt.Sprintf("it is on timeline %d, older than the record's %d", v.timeline, m.rec.Timeline)
	case v.timeline > m.rec.Timeline:
		return fmt.Sprintf("it is on timeline %d, which the record's primary on timeline %d never had", v.timeline, m.rec.Timeline)
	}
	return m.tooFarBehind(o.Position.LSN)
}

func (m *Machine) tooFarBehind(l cluster.LSN) string {
	if lag := l.Behind(m.seen.LSN); lag > m.policy.MaxLagBytes {
		return fmt.Sprintf("it lacks %d bytes of WAL that were seen on %s; max_lag_bytes allows %d", lag, m.rec.Primary, m.policy.MaxLagBytes)
	}
	return ""
}

// choose returns the fit member that has the most WAL, the first listed of
// equals; or none, and why each was refused.
func (m *Machine) choose() (candidate, refused string) {
	if other := m.promotedByOthers(); other != "" {
		return "", fmt.Sprintf("%s is writable on timeline %d, which is not our doing: if it is the new primary, stop the proxy, move the record away and start it again; if not, stop %s",
			other, m.views[other].last.Position.Timeline, other)
	}
	var best cluster.LSN
	var why []string
	for _, name := range m.members {
		if name == m.rec.Primary {
			continue
		}
		if reason := m.unfit(name); reason != "" {
			why = append(why, name+": "+reason)
			continue
		}
		if l := m.position(name); candidate == "" || l > best {
			candidate, best = name, l
		}
	}
	if candidate == "" && len(why) == 0 {
		return "", "there is no other member"
	}
	return candidate, strings.Join(why, "; ")
}

// position is the most WAL that a member is known to have: its last answer, or
// what a drain has found.
func (m *Machine) position(name string) cluster.LSN {
	return max(m.views[name].last.Position.LSN, m.attempt.drained[name].LSN)
}
