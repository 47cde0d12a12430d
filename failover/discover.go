package failover

import (
	"fmt"
	"log/slog"
	"strings"

	"pgfailproxy/cluster"
)

// discover takes the primary on the first start: exactly one writable member,
// of one system. Everything else is for a person to decide.
func (m *Machine) discover() {
	if m.now.Before(m.retryAt) {
		return
	}
	primary, reason := m.findPrimary()
	if reason != "" {
		if m.state != Starting || m.allHeard() {
			m.becomeHalted(reason)
		}
		return
	}
	if primary == "" {
		return // not everybody was heard yet
	}
	o := m.views[primary].good
	m.seen, m.seenAt = o.Position, o.Asked
	m.store(cluster.Record{
		Revision: 1, Epoch: 1,
		System: o.System, Timeline: o.Position.Timeline, Primary: primary,
		Seen: m.seen, SeenAt: m.seenAt,
	})
}

func (m *Machine) allHeard() bool {
	for _, name := range m.members {
		if !m.views[name].heard(m.now, m.policy) {
			return false
		}
	}
	return true
}

// findPrimary returns the only possible primary; or why there is none; or
// neither, while members were not heard yet.
func (m *Machine) findPrimary() (primary, reason string) {
	var writable, silent []string
	systems := map[cluster.SystemID]string{}
	var highest cluster.TimelineID
	var ahead string
	for _, name := range m.members {
		o := m.views[name].last
		if !o.Healthy() {
			silent = append(silent, fmt.Sprintf("%s: %s", name, o.Err))
			continue
		}
		systems[o.System] = name
		if o.Role == cluster.RolePrimary {
			writable = append(writable, name)
		}
		if o.Position.Timeline > highest {
			highest, ahead = o.Position.Timeline, name
		}
	}
	switch {
	case len(systems) > 1:
		var each []string
		for _, name := range m.members {
			if o := m.views[name].last; o.Healthy() {
				each = append(each, fmt.Sprintf("%s has system identifier %d", name, o.System))
			}
		}
		return "", "the members belong to different database clusters: " + strings.Join(each, ", ") + "; list only a primary and its standbys"
	case len(writable) > 1:
		return "", fmt.Sprintf("%s are both writable, and it is not known which of them is the primary: stop the wrong one, or make it a standby of the other", strings.Join(writable, " and "))
	case !m.allHeard():
		return "", ""
	case len(writable) == 0:
		reason = "no member is writable, so there is no primary yet"
		if len(silent) > 0 {
			reason += " (" + strings.Join(silent, "; ") + ")"
		}
		return "", reason + ": start the primary"
	case m.views[writable[0]].last.Position.Timeline < highest:
		return "", fmt.Sprintf("%s is the only writable member, but %s is on timeline %d, which is newer: %s looks like an old primary; stop it and start the real one", writable[0], ahead, highest, writable[0])
	}
	if len(silent) > 0 {
		m.say(slog.LevelWarn, "taking the only writable member though others do not answer: "+strings.Join(silent, "; "), slog.String("member", writable[0]))
	}
	return writable[0], ""
}
