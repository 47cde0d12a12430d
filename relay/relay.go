// Package relay moves bytes between two connections, and shows them to who wants
// to follow them. It knows nothing of what they mean.
//
// A Mover moves the bytes of many pairs of connections. Plain sockets on Linux
// share a few event loops; such a pair has no goroutine, and while it is idle no
// buffer. Other connections, such as TLS ones, have two goroutines
// each. What a pair does, and how it is handed back, is the same.
package relay

import "net"

// Side names one of the two connections of a pair.
type Side uint8

// The sides are alike but for Cut, which spares A: in the proxy A is the client.
const (
	A Side = iota
	B
)

// Other returns the side across.
func (s Side) Other() Side { return 1 - s }

func (s Side) String() string { return [...]string{"A", "B"}[s] }

// MaxKept bounds what a watcher may leave of what it was shown, in bytes: it must
// be less.
const MaxKept = 16 << 10

// Watcher is shown what a pair moves. Its methods are never called concurrently
// for one pair; the first call may come before Start returns. They must not
// block, keep p, or call methods of the Flow.
type Watcher interface {
	// Arrived is shown what was read from a side, before any of it is written to
	// the other. p begins with what the last Verdict for that side left over.
	Arrived(from Side, p []byte) Verdict
	// Ended says that a side will send nothing more. All that it sent was shown.
	// true: that is passed on as a half-close, after what is still kept, and the
	// other direction goes on. false: the pair is handed back.
	Ended(from Side) (passOn bool)
}

// Verdict is what becomes of what a watcher was shown.
type Verdict struct {
	// Pass is how many bytes go to the other side now. The rest is kept and comes
	// again, at the start of what is shown next of that side.
	Pass int
	// Unseen is how many bytes that follow from the same side may be moved without
	// being shown: the rest of a large message. Only where all was passed.
	Unseen int64
	// Stop hands the pair back, once what was passed is with the kernel or in
	// Pair.Unwritten.
	Stop bool
}

// Pair is two connections and what is on its way between them. X[s] belongs to
// what was read from s.
type Pair struct {
	Conn      [2]net.Conn
	Kept      [2][]byte // read and not passed: shown first when the pair is moved again
	Unwritten [2][]byte // passed and not written yet: written first
	Unseen    [2]int64  // what was left of Verdict.Unseen
	Ended     [2]bool   // the side's end was seen; a pair that is moved again passes it on
}

// Reason is why a pair was handed back.
type Reason uint8

const (
	Finished Reason = iota // both sides have ended, and all was written
	Stopped                // by a Verdict, by Ended or by Flow.Stop
	WasCut                 // by Flow.Cut
	Failed                 // a connection did
)

func (r Reason) String() string {
	return [...]string{"finished", "stopped", "cut", "failed"}[r]
}

// Result is a pair that is handed back. Whoever gets it closes its connections.
type Result struct {
	Pair   // Conn[B] is nil after a cut
	Reason Reason
	From   Side     // Failed: whose connection did. Stopped by Ended: who ended
	Err    error    // Failed: why; a *net.OpError unless the watcher asked for the impossible
	Moved  [2]int64 // bytes written to the other side, by the side that they were read from
}
