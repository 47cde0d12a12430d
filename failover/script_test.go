package failover

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgfailproxy/cluster"
)

var update = flag.Bool("update", false, "write what the scripts give into testdata")

// TestScripts plays each script of testdata against a Machine. A line is an
// event; the lines below it that begin with "->" are what the machine answers.
// With -update they are written anew: read the difference before you believe it.
//
//	members pg1 pg2               who there is (first line)
//	policy fence_command          what differs from the test's policy
//	record epoch=2 primary=pg1    what is found at the start
//	+1s pg1 primary 1:0/5000000   an answer, after a second
//	+1s pg1 standby 1:0/5000000 system=8 asked=-2s
//	+1s pg1 refused               or silent, lost, starting, full, failed
//	stored, stored error          a Store ended
//	done drain pg2 1:0/5000000    a step ended
//	again drain pg2 1:0/4000000   a step needs more time
//	error promote pg2             a step failed
//	refused fence pg2             a step that the server will never do
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(data))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(data) {
				t.Errorf("the machine answers otherwise than %s says (go test -update writes it anew):\n%s", file, got)
			}
		})
	}
}

var testPolicy = Policy{
	Threshold: 3, StartTimeout: time.Minute, MaxLagBytes: 1 << 10,
	DrainTimeout: 10 * time.Second, ErrorTimeout: 5 * time.Second, PromoteTimeout: 10 * time.Second,
	RetryEvery: 5 * time.Second, SeenEvery: 10 * time.Second, FirstLook: 10 * time.Second,
}

type player struct {
	t       *testing.T
	policy  Policy
	members []string
	rec     cluster.Record
	m       *Machine
	now     time.Time
	state   State
}

func play(t *testing.T, script string) string {
	p := &player{t: t, policy: testPolicy, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	var out strings.Builder
	for line := range strings.Lines(script) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, "->") {
			continue
		}
		out.WriteString(line + "\n")
		if text, _, _ := strings.Cut(line, "#"); strings.TrimSpace(text) != "" {
			for _, answer := range p.line(strings.Fields(text)) {
				out.WriteString("-> " + answer + "\n")
			}
		}
	}
	return out.String()
}

// line plays one line and returns the answers.
func (p *player) line(f []string) []string {
	p.t.Helper()
	switch f[0] {
	case "members":
		p.members = f[1:]
		return nil
	case "policy":
		p.policy.FenceCommand = true
		return nil
	case "record":
		p.rec = parseRecord(p.t, f[1:])
		return nil
	}
	if p.m == nil {
		m, err := NewMachine(p.policy, p.members, p.rec)
		if err != nil {
			p.t.Fatal(err)
		}
		p.m, p.state = m, m.state
	}
	var answers []string
	for _, a := range p.m.Step(p.now, p.event(f)) {
		answers = append(answers, describe(a))
	}
	if p.m.state != p.state {
		p.state = p.m.state
		answers = append(answers, "state "+string(p.state))
	}
	return answers
}

func (p *player) event(f []string) Event {
	p.t.Helper()
	if strings.HasPrefix(f[0], "+") {
		d, err := time.ParseDuration(f[0][1:])
		if err != nil {
			p.t.Fatal(err)
		}
		p.now = p.now.Add(d)
		return Observed{p.observation(f[1:])}
	}
	if !p.m.busy {
		p.t.Fatalf("%q, but nothing is under way", strings.Join(f, " "))
	}
	if f[0] == "stored" {
		var ev Stored
		if len(f) > 1 {
			ev.Err = errors.New("disk full")
		}
		return ev
	}
	words := f[1:]
	member := words[len(words)-1]
	var pos cluster.Position
	if strings.Contains(member, ":") {
		pos = parsePosition(p.t, member)
		words = words[:len(words)-1]
		member = words[len(words)-1]
	}
	done := Done{Step: Step(strings.Join(words[:len(words)-1], " ")), Member: member, Position: pos}
	switch f[0] {
	case "done":
		done.Final = true
		if done.Step == StepVerify {
			done.Observation = cluster.Observation{Member: member, Asked: p.now, Reach: cluster.ReachAnswered, Role: cluster.RolePrimary,
				System: 7, Position: pos, Addr: cluster.Addr{Network: "tcp", Address: member}}
		}
	case "again":
	case "error":
		done.Err = errors.New("connection refused")
	case "refused":
		done.Err, done.Refused = errors.New("permission denied"), true
	default:
		p.t.Fatalf("unknown line %q", strings.Join(f, " "))
	}
	return done
}

var reaches = map[string]cluster.Reach{
	"refused": cluster.ReachRefused, "silent": cluster.ReachSilent, "lost": cluster.ReachLost,
	"starting": cluster.ReachStarting, "full": cluster.ReachFull, "failed": cluster.ReachFailed,
}

func (p *player) observation(f []string) cluster.Observation {
	p.t.Helper()
	o := cluster.Observation{Member: f[0], Asked: p.now, System: 7}
	for i, word := range f {
		if ago, ok := strings.CutPrefix(word, "asked="); ok {
			d, err := time.ParseDuration(ago)
			if err != nil {
				p.t.Fatal(err)
			}
			o.Asked = p.now.Add(d)
			f = append(f[:i:i], f[i+1:]...)
			break
		}
	}
	if r, ok := reaches[f[1]]; ok {
		o.Reach, o.Err, o.System = r, f[1], 0
		return o
	}
	o.Reach, o.Addr = cluster.ReachAnswered, cluster.Addr{Network: "tcp", Address: f[0]}
	o.Position = parsePosition(p.t, f[2])
	switch f[1] {
	case "primary":
		o.Role = cluster.RolePrimary
	case "standby":
		o.Role, o.Replayed, o.Streaming = cluster.RoleStandby, o.Position.LSN, true
	default:
		p.t.Fatalf("unknown answer %q", f[1])
	}
	for _, opt := range f[3:] {
		fmt.Sscanf(opt, "system=%d", &o.System)
	}
	return o
}

func parsePosition(t *testing.T, s string) cluster.Position {
	t.Helper()
	tl, l, _ := strings.Cut(s, ":")
	lsn, err := cluster.ParseLSN(l)
	if err != nil {
		t.Fatal(err)
	}
	var pos cluster.Position
	fmt.Sscan(tl, &pos.Timeline)
	pos.LSN = lsn
	return pos
}

func parseRecord(t *testing.T, f []string) cluster.Record {
	t.Helper()
	r := cluster.Record{Revision: 10, System: 7}
	for _, word := range f {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "epoch":
			fmt.Sscan(value, &r.Epoch)
		case "timeline":
			fmt.Sscan(value, &r.Timeline)
		case "primary":
			r.Primary = value
		case "candidate":
			r.Candidate = value
		case "held":
			r.Held = true
		case "seen":
			r.Seen = parsePosition(t, value)
		default:
			t.Fatalf("unknown word %q in record", word)
		}
	}
	return r
}

func describe(a Action) string {
	switch a := a.(type) {
	case Store:
		return fmt.Sprintf("store: %s", a.Record)
	case Publish:
		return fmt.Sprintf("publish: %s", a.Record)
	case Open:
		return fmt.Sprintf("open %s in epoch %d", a.Member, a.Epoch)
	case Suspend:
		return "suspend: " + a.Reason
	case Look:
		return "look at " + a.Member
	case Do:
		return fmt.Sprintf("do %s %s", a.Step, a.Member)
	case Say:
		return fmt.Sprintf("say %s: %s", strings.ToLower(a.Level.String()), a.Text)
	case Announce:
		r := a.Report
		return fmt.Sprintf("report: %s to %s, %s, %d bytes, seen %s, promoted at %s, took %s", r.From, r.To, r.Verdict, r.BytesAtRisk, r.Seen, r.Promoted, r.Took())
	}
	return fmt.Sprintf("%T", a)
}
