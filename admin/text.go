package admin

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"pgfailproxy/cluster"
)

// WriteTable writes s for people: a line for the cluster, one for each member,
// and the last failover.
func WriteTable(w io.Writer, s Status) error {
	var b strings.Builder
	b.WriteString(headline(s) + "\n")
	fmt.Fprintf(&b, "sessions: %d open, %d held, %d in total, %d refused\n\n",
		s.Sessions.Open, s.Sessions.Held, s.Sessions.Total, s.Sessions.Refused)
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "MEMBER\tROLE\tSTATE\tADDRESS\tVERSION\tTL\tLSN\tLAG\tANSWERED")
	for _, m := range s.Members {
		row := s.row(m)
		fmt.Fprintln(tw, strings.Join(row[:], "\t"))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, m := range s.Members {
		if m.Error != "" {
			fmt.Fprintf(&b, "%s: %s\n", m.Name, oneLine(m.Error))
		}
	}
	if len(s.Failovers) > 0 {
		b.WriteString("\nlast failover: " + strings.Join(story(s.Failovers[0]), "\n  ") + "\n")
	}
	_, err := io.WriteString(w, trimLines(b.String()))
	return err
}

// headline says in a line or two what the cluster is about.
func headline(s Status) string {
	out := "pgfailproxy"
	if s.Version != "" {
		out += " " + s.Version
	}
	out += ": " + s.State
	switch {
	case s.Served():
		out += " " + s.Primary + " at " + s.Address
	case s.Candidate != "":
		out += " " + s.Candidate
	}
	if !s.Since.IsZero() {
		out += " for " + age(s.Time.Sub(s.Since))
	}
	if s.Epoch != 0 {
		out += fmt.Sprintf(", epoch %d, timeline %d", s.Epoch, s.Timeline)
	}
	if !s.Served() {
		out += "\n" + oneLine(s.Why())
	}
	return out
}

// row returns the columns of a member.
func (s Status) row(m Member) [9]string {
	role := m.Role
	if role == "" || role == cluster.RoleUnknown.String() {
		role = "-"
	}
	row := [9]string{m.Name, role, s.condition(m), dash(m.Address), version(m.ServerVersion), "-", "-", "-", "never"}
	if m.Timeline != 0 {
		row[5] = strconv.FormatUint(uint64(m.Timeline), 10)
	}
	if m.LSN != 0 {
		row[6] = m.LSN.String()
	}
	if m.LagBytes != nil && m.Role != cluster.RolePrimary.String() {
		row[7] = bytesText(*m.LagBytes)
	}
	if !m.LastAnswer.IsZero() {
		row[8] = age(s.Time.Sub(m.LastAnswer)) + " ago"
	}
	return row
}

// condition says in a word or two how a member is.
func (s Status) condition(m Member) string {
	switch {
	case m.Reach != cluster.ReachAnswered.String():
		if m.Misses > 1 {
			return fmt.Sprintf("%s (%dx)", m.Reach, m.Misses)
		}
		return dash(m.Reach)
	case s.System != 0 && m.System != s.System:
		return "foreign"
	case m.Role == cluster.RolePrimary.String():
		if s.Served() && m.Name == s.Primary {
			return "served"
		}
		return "not served"
	case s.notReplica(&m) == "":
		return "streaming"
	case s.Timeline != 0 && m.Timeline != s.Timeline:
		return "other timeline"
	}
	return "not streaming"
}

// story tells a failover in lines.
func story(f Failover) []string {
	who := f.From + " -> " + f.To
	if f.From == f.To {
		who = f.From + " came back and was kept"
	}
	lines := []string{fmt.Sprintf("%s, epoch %d, %s, in %s", who, f.Epoch,
		f.Started.UTC().Format("2006-01-02 15:04:05.000Z"), seconds(f.Seconds))}
	if f.Cause != "" {
		lines = append(lines, "cause: "+oneLine(f.Cause))
	}
	var phases []string
	for _, p := range f.Phases {
		phases = append(phases, p.Name+" "+seconds(p.Seconds))
	}
	if len(phases) > 0 {
		lines = append(lines, "phases: "+strings.Join(phases, ", "))
	}
	return append(lines, "loss: "+loss(f))
}

// loss puts the verdict into a sentence.
func loss(f Failover) string {
	switch f.Verdict {
	case "zero":
		return "none"
	case "at risk":
		return fmt.Sprintf("%s of WAL that was seen on %s is missing on %s: commits in it are lost", bytesText(f.BytesAtRisk), f.From, f.To)
	case "unknown":
		seen := "it was last seen"
		if !f.LastSeenAt.IsZero() {
			seen = f.LastSeenAt.UTC().Format("15:04:05.000Z")
		}
		return fmt.Sprintf("none of what was seen on %s; what it wrote after %s is unknown", f.From, seen)
	}
	return dash(f.Verdict)
}

// version makes 180006 into 18.6.
func version(n int) string {
	if n <= 0 {
		return "-"
	}
	return fmt.Sprintf("%d.%d", n/10000, n%10000)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return oneLine(s)
}

// seconds is for parts of a failover: 0.412 s.
func seconds(s float64) string { return strconv.FormatFloat(s, 'f', 3, 64) + " s" }

// age is for a time that passed, in two units at most. A clock that was set back
// makes no negative one.
func age(d time.Duration) string {
	const day = 24 * time.Hour
	switch d = max(d, 0); {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Truncate(100*time.Millisecond).Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 2*day:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	default:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	}
}

// bytesText writes a size for people: 312.5 KiB.
func bytesText(n uint64) string {
	if n < 1<<10 {
		return strconv.FormatUint(n, 10) + " B"
	}
	f, unit := float64(n), ""
	for _, unit = range []string{"KiB", "MiB", "GiB", "TiB"} {
		f /= 1 << 10
		if f < 1<<10 {
			break
		}
	}
	return strconv.FormatFloat(f, 'f', 1, 64) + " " + unit
}

// oneLine takes control characters out of what a server may have said.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// trimLines takes the spaces off the ends of lines.
func trimLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}
