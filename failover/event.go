package failover

import (
	"log/slog"
	"time"

	"pgfailproxy/cluster"
)

// Event is something that happened: Observed, Stored or Done.
type Event interface{ event() }

// Observed is an observation of a member.
type Observed struct{ cluster.Observation }

// Stored ends a Store: Err is nil when the Record is durable.
type Stored struct{ Err error }

// Done ends a Do.
type Done struct {
	Step   Step
	Member string
	// Final is false when the step did not fail but needs to be called again:
	// each call is short, so that the machine can think anew in between.
	Final bool
	// Position is how far a drained member has replayed.
	Position cluster.Position
	// Observation is what proved a verified member to be a primary.
	Observation cluster.Observation
	Err         error
	// Refused says that the server will not do it, however often it is asked:
	// a missing privilege, a setting that forbids it.
	Refused bool
}

func (Observed) event() {}
func (Stored) event()   {}
func (Done) event()     {}

// Step is one thing to be done to PostgreSQL.
type Step string

const (
	// StepFence stops the candidate's WAL receiver, once no more WAL is on its
	// way, so that the old primary cannot reach it any more.
	StepFence Step = "fence"
	// StepDrain waits until the candidate replayed all that it received.
	StepDrain Step = "drain"
	// StepFenceCommand runs the operator's command against the old primary.
	StepFenceCommand Step = "fence command"
	// StepPromote makes the candidate a primary.
	StepPromote Step = "promote"
	// StepVerify checks that it is one and takes a write.
	StepVerify Step = "verify"
	// StepUnfence gives a fenced standby its WAL receiver back.
	StepUnfence Step = "unfence"
)

// Action is something to be done: Store, Publish, Open, Suspend, Look, Do, Say
// or Announce. The machine gives at most one Store or Do at a time, and gives the
// next after its Stored or Done; the others take no time and have no answer.
type Action interface{ action() }

// Store makes a Record durable.
type Store struct{ Record cluster.Record }

// Publish applies a stored Record to the route: sessions on a member that it
// gives up end.
type Publish struct{ Record cluster.Record }

// Open lets sessions go to the primary of an epoch, at the address where it was
// verified.
type Open struct {
	Epoch  cluster.Epoch
	Member string
	Addr   cluster.Addr
}

// Suspend has new sessions wait; those that exist go on.
type Suspend struct{ Reason string }

// Look has a member asked now, rather than at its next turn.
type Look struct{ Member string }

// Do carries out a step on a member. Record is the one in force.
type Do struct {
	Step   Step
	Member string
	Record cluster.Record
}

// Say is a line for the log.
type Say struct {
	Level slog.Level
	Text  string
	Attrs []slog.Attr
}

// Announce reports a failover that ended.
type Announce struct{ Report Report }

func (Store) action()    {}
func (Publish) action()  {}
func (Open) action()     {}
func (Suspend) action()  {}
func (Look) action()     {}
func (Do) action()       {}
func (Say) action()      {}
func (Announce) action() {}

// Phase is one part of a failover and how long it took.
type Phase struct {
	Name string
	Took time.Duration
}

// Verdict says what became of commits that were acknowledged before a failover.
type Verdict string

const (
	// VerdictAtRisk: the new primary lacks WAL that was seen on the old one.
	// Commits in it are lost.
	VerdictAtRisk Verdict = "at risk"
	// VerdictUnknown: the new primary has all WAL that was seen on the old one.
	// What the old one wrote after it was last seen cannot be known.
	VerdictUnknown Verdict = "unknown"
	// VerdictZero: nothing can be missing; the old primary was kept.
	VerdictZero Verdict = "zero"
)

// Report is the story of one failover.
type Report struct {
	Epoch    cluster.Epoch
	From, To string // equal when the failover was undone
	Cause    string
	// Started is when the first sign of trouble was seen.
	Started time.Time
	Phases  []Phase
	// Seen is the last position seen on the old primary, and SeenAt when.
	Seen   cluster.Position
	SeenAt time.Time
	// Promoted is how far the new primary had replayed before its promotion.
	Promoted cluster.Position
	// BytesAtRisk is the WAL between Promoted and Seen. WAL written after
	// SeenAt is not in it.
	BytesAtRisk uint64
	Verdict     Verdict
}

// Took is the whole time, from the first sign of trouble to the open route.
func (r Report) Took() time.Duration {
	var sum time.Duration
	for _, p := range r.Phases {
		sum += p.Took
	}
	return sum
}
