package failover

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"pgfailproxy/cluster"
)

// TestInvariantsInRandomWorlds lets the machine loose on simulated servers that
// die, hang, restart, diverge and replicate at random, with steps that fail, a
// disk that fails and a proxy that is killed at any moment, and holds it to what
// must never happen. A failure prints the seed and the last events.
func TestInvariantsInRandomWorlds(t *testing.T) {
	worlds := 1500
	if testing.Short() {
		worlds = 300
	}
	var failovers, undone, crashes int
	for seed := range uint64(worlds) {
		w := newWorld(t, seed)
		for range 400 {
			w.random()
		}
		w.heal()
		if seed%3 == 0 {
			w.lastFailover()
		}
		failovers, undone, crashes = failovers+w.failovers, undone+w.undone, crashes+w.crashes
	}
	t.Logf("%d worlds: %d failovers, %d undone, %d crashes of the proxy", worlds, failovers, undone, crashes)
	if failovers < worlds/4 || undone == 0 || crashes < worlds {
		t.Error("the worlds are too quiet to show anything")
	}
}

// server is a simulated member.
type server struct {
	up, hung  bool
	primary   bool
	timeline  cluster.TimelineID
	lsn       cluster.LSN
	following string // whom it streams from; empty when fenced
	promoting bool   // pg_promote was called
}

type world struct {
	t       *testing.T
	rng     *rand.Rand
	seed    uint64
	now     time.Time
	names   []string
	servers map[string]*server
	highest cluster.TimelineID

	m       *Machine
	durable cluster.Record // what a restart reads
	pending Action         // the Store or Do under way
	open    string         // where a new session would go
	served  map[cluster.Epoch]string
	drained map[string]cluster.LSN

	failovers, undone, crashes int
	log                        []string
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(1e9, 0), highest: 1,
		servers: map[string]*server{}, served: map[cluster.Epoch]string{}, drained: map[string]cluster.LSN{}}
	for i := range 2 + w.rng.IntN(2) {
		name := fmt.Sprintf("pg%d", i+1)
		w.names = append(w.names, name)
		w.servers[name] = &server{up: true, timeline: 1, lsn: 1000, primary: i == 0, following: "pg1"}
	}
	w.start()
	return w
}

func (w *world) start() {
	policy := testPolicy
	policy.FenceCommand = w.seed%3 == 0
	m, err := NewMachine(policy, w.names, w.durable)
	if err != nil {
		w.fatalf("start: %v", err)
	}
	w.m, w.pending, w.open = m, nil, ""
}

func (w *world) fatalf(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("seed %d: %s\n%s", w.seed, fmt.Sprintf(format, args...), strings.Join(w.log[max(0, len(w.log)-60):], "\n"))
}

// random lets one thing happen.
func (w *world) random() {
	w.now = w.now.Add(time.Duration(w.rng.IntN(400)) * time.Millisecond)
	s := w.servers[w.names[w.rng.IntN(len(w.names))]]
	switch n := w.rng.IntN(100); {
	case n < 45:
		w.probe(w.names[w.rng.IntN(len(w.names))])
	case n < 70:
		w.finish(w.rng.IntN(8) == 0)
	case n < 78:
		w.write()
	case n < 88:
		w.replicate()
	case n < 90:
		s.up = false
	case n < 93:
		s.up, s.hung = true, false
	case n < 95:
		s.hung = !s.hung
	case n < 96:
		w.rebuild(s)
	case n < 98:
		w.crash()
	default:
		w.now = w.now.Add(10 * time.Second)
	}
	for _, s := range w.servers { // promotions end by themselves
		if s.promoting && s.up && !s.hung && w.rng.IntN(3) == 0 {
			w.promote(s)
		}
	}
}

func (w *world) promote(s *server) {
	w.highest++
	s.primary, s.promoting, s.timeline = true, false, w.highest
	s.lsn++
}

// probe asks a member and hands the answer to the machine.
func (w *world) probe(name string) {
	s := w.servers[name]
	o := cluster.Observation{Member: name, Asked: w.now, Addr: cluster.Addr{Network: "tcp", Address: name}}
	switch {
	case !s.up:
		o.Reach, o.Err = cluster.ReachRefused, "refused"
	case s.hung:
		o.Reach, o.Err = cluster.ReachSilent, "silent"
	case w.rng.IntN(20) == 0:
		o.Reach, o.Err = []cluster.Reach{cluster.ReachLost, cluster.ReachStarting, cluster.ReachFull, cluster.ReachFailed}[w.rng.IntN(4)], "odd"
	default:
		o.Reach, o.Role, o.System = cluster.ReachAnswered, cluster.RoleStandby, 7
		o.Position = cluster.Position{Timeline: s.timeline, LSN: s.lsn}
		o.Streaming = s.following != "" && w.servers[s.following].up
		if s.primary {
			o.Role, o.Streaming = cluster.RolePrimary, false
		}
	}
	w.step(Observed{o})
}

// write commits a transaction where a session would.
func (w *world) write() {
	if w.open == "" {
		return
	}
	s := w.servers[w.open]
	if !s.up || s.hung {
		return
	}
	if !s.primary || s.timeline != w.durable.Timeline || w.durable.Held || w.durable.Primary != w.open {
		w.fatalf("a client's write reached %s (%+v), the record says %s", w.open, *s, w.durable)
	}
	s.lsn += cluster.LSN(w.rng.IntN(300))
}

func (w *world) replicate() {
	for _, s := range w.servers {
		if from := w.servers[s.following]; s.up && !s.hung && !s.primary && from != nil && from != s && from.up && !from.hung &&
			from.primary && s.timeline == from.timeline && s.lsn < from.lsn {
			s.lsn += cluster.LSN(w.rng.IntN(int(from.lsn-s.lsn) + 1))
		}
	}
}

// rebuild makes a server a fresh standby of the record's primary, as a person
// would.
func (w *world) rebuild(s *server) {
	from := w.servers[w.durable.Primary]
	if from == nil || from == s || !from.up || !from.primary || w.durable.Held {
		return
	}
	*s = server{up: true, timeline: from.timeline, lsn: from.lsn, following: w.durable.Primary}
}

// crash kills the proxy. What was under way may have happened or not.
func (w *world) crash() {
	w.crashes++
	w.log = append(w.log, "-- crash")
	switch a := w.pending.(type) {
	case Store:
		if w.rng.IntN(2) == 0 {
			w.durable = a.Record
		}
	case Do:
		if w.rng.IntN(2) == 0 {
			w.apply(a)
		}
	}
	w.start()
}

// finish ends what is under way.
func (w *world) finish(fail bool) {
	var ev Event
	switch a := w.pending.(type) {
	case nil:
		return
	case Store:
		if fail {
			ev = Stored{errors.New("disk full")}
			break
		}
		w.durable = a.Record
		ev = Stored{}
	case Do:
		done := w.apply(a)
		if fail {
			done = Done{Step: a.Step, Member: a.Member, Err: errors.New("failed")}
		}
		ev = done
	}
	w.pending = nil
	w.step(ev)
}

// apply carries a step out on a simulated server.
func (w *world) apply(a Do) Done {
	s := w.servers[a.Member]
	done := Done{Step: a.Step, Member: a.Member}
	if a.Step == StepFenceCommand {
		s.up, done.Final = false, true
		return done
	}
	if !s.up || s.hung {
		done.Err = errors.New("no answer")
		return done
	}
	switch a.Step {
	case StepFence:
		s.following, done.Final = "", true
	case StepUnfence:
		s.following, done.Final = a.Record.Primary, true
	case StepDrain:
		done.Position, done.Final = cluster.Position{Timeline: s.timeline, LSN: s.lsn}, w.rng.IntN(4) > 0
		if done.Final {
			w.drained[a.Member] = s.lsn
		}
	case StepPromote:
		if !s.primary {
			s.promoting = true
		}
		if s.promoting && w.rng.IntN(2) == 0 {
			w.promote(s)
		}
		done.Final = s.primary
	case StepVerify:
		if s.primary && s.timeline > a.Record.Timeline {
			done.Final = true
			done.Observation = cluster.Observation{Member: a.Member, Asked: w.now, Reach: cluster.ReachAnswered, Role: cluster.RolePrimary, System: 7,
				Position: cluster.Position{Timeline: s.timeline, LSN: s.lsn}, Addr: cluster.Addr{Network: "tcp", Address: a.Member}}
		} else {
			done.Err = errors.New("not a primary")
		}
	}
	return done
}

// step feeds the machine and holds its answers to the invariants.
func (w *world) step(ev Event) {
	w.log = append(w.log, fmt.Sprintf("%T %+v", ev, ev))
	before := w.m.state
	for _, a := range w.m.Step(w.now, ev) {
		w.log = append(w.log, "   -> "+describe(a))
		switch a := a.(type) {
		case Store:
			w.begin(a)
			if a.Record.Revision != w.durable.Revision+1 || a.Record.Epoch < w.durable.Epoch || a.Record.Check() != nil {
				w.fatalf("stores %+v over %+v (%v)", a.Record, w.durable, a.Record.Check())
			}
			if a.Record.Primary != w.durable.Primary && !w.durable.IsZero() && !w.durable.Held {
				w.fatalf("another primary without a held record before it")
			}
		case Publish:
			if a.Record.Revision != w.durable.Revision {
				w.fatalf("publishes a record that is not durable")
			}
			if a.Record.Held {
				w.open = ""
			}
		case Open:
			w.checkOpen(a)
			w.open = a.Member
		case Suspend:
			w.open = ""
		case Do:
			w.begin(a)
			w.checkDo(a)
		case Announce:
			if a.Report.From == a.Report.To {
				w.undone++
			} else {
				w.failovers++
			}
			if want := a.Report.Promoted.LSN.Behind(a.Report.Seen.LSN); !a.Report.Promoted.IsZero() && a.Report.BytesAtRisk != want {
				w.fatalf("reports %d bytes at risk, not %d", a.Report.BytesAtRisk, want)
			}
		}
	}
	if w.m.state == Serving && before != Serving && w.open == "" {
		w.fatalf("serving, but the route is not open")
	}
}

func (w *world) begin(a Action) {
	if w.pending != nil {
		w.fatalf("two things at a time: %s and %s", describe(w.pending), describe(a))
	}
	w.pending = a
}

// One writer, one member in an epoch, and only what the record says and an
// answer proves.
func (w *world) checkOpen(a Open) {
	r := w.durable
	if r.Held || a.Member != r.Primary || a.Epoch != r.Epoch {
		w.fatalf("opens %s in epoch %d, the record says %s", a.Member, a.Epoch, r)
	}
	if other := w.served[a.Epoch]; other != "" && other != a.Member {
		w.fatalf("epoch %d serves %s and %s", a.Epoch, other, a.Member)
	}
	w.served[a.Epoch] = a.Member
	if o := w.m.views[a.Member].last; !o.Serves(r) {
		w.fatalf("opens %s without proof: %+v", a.Member, o)
	}
}

// No promotion without a durable intent and a candidate that may be one.
func (w *world) checkDo(a Do) {
	r := w.durable
	switch a.Step {
	case StepFence, StepDrain, StepFenceCommand:
		if !r.Held {
			w.fatalf("%s without a held record", describe(a))
		}
	case StepPromote:
		if !r.Held || r.Candidate != a.Member {
			w.fatalf("promotes %s, the record says %s", a.Member, r)
		}
		if lag := w.drained[a.Member].Behind(r.Seen.LSN); lag > testPolicy.MaxLagBytes {
			w.fatalf("promotes %s, which lacks %d bytes of what was seen", a.Member, lag)
		}
		if v := w.m.views[a.Member]; v.timeline != r.Timeline && !v.last.Serves(cluster.Record{}) && v.last.Role == cluster.RoleStandby {
			w.fatalf("promotes %s on timeline %d, the record says %d", a.Member, v.timeline, r.Timeline)
		}
	}
}

// heal makes the record's primary well again, or its candidate if that is the
// only way, and expects to be served.
func (w *world) heal() {
	for _, s := range w.servers {
		s.up, s.hung = true, false
	}
	if w.pass(400, func() bool { return w.m.state == Serving }) {
		return
	}
	w.fatalf("not serving though all servers are well: %s, %s, record %s", w.m.state, w.m.reason, w.durable)
}

// lastFailover kills the primary of a world in which all is well: whatever had
// happened before, a standby that has everything takes over.
func (w *world) lastFailover() {
	dead := w.durable.Primary
	for _, s := range w.servers {
		w.rebuild(s)
	}
	w.pass(100, func() bool { return false })
	for _, s := range w.servers {
		s.lsn = w.servers[dead].lsn
	}
	w.servers[dead].up = false
	if !w.pass(400, func() bool { return w.m.state == Serving && w.durable.Primary != dead }) {
		w.fatalf("no standby took over from %s: %s, %s", dead, w.m.state, w.m.reason)
	}
}

// pass lets time pass without faults, at most so many steps, until done; it
// reports whether that came true.
func (w *world) pass(steps int, done func() bool) bool {
	for range steps {
		w.now = w.now.Add(200 * time.Millisecond)
		for _, name := range w.names {
			w.probe(name)
		}
		w.finish(false)
		for _, s := range w.servers {
			if s.promoting && s.up {
				w.promote(s)
			}
		}
		if done() {
			return true
		}
	}
	return false
}
