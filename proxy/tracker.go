package proxy

import (
	"bytes"

	"pgfailproxy/pgwire"
)

// State is where a session stands.
type State uint8

const (
	StateStartup        State = iota // before and during start-up packets and TLS
	StateAuthenticating              // until the server is ready for the first time
	StateHeld                        // waiting for a primary
	StateIdle
	StateBusy        // a statement is under way
	StatePipeline    // several are
	StateTransaction // idle in a transaction block
	StateFailed      // idle in one that has failed
	StateCommitting  // the end of a transaction block is under way
	StateCopyIn
	StateCopyOut
	StateWalsender // a replication connection
	StateBlind     // relayed without being looked at
)

var stateWords = [...]string{"start-up", "authenticating", "held", "idle", "busy", "pipeline", "in transaction",
	"in failed transaction", "committing", "copy in", "copy out", "walsender", "passthrough"}

func (s State) String() string { return stateWords[s] }

// Values of ReadyForQuery, and one of ours: the status is not known because
// answers are outstanding. It is then treated as outside a transaction block,
// where most can have happened.
const (
	outside     = 'I'
	inBlock     = 'T'
	inFailed    = 'E'
	unknownNow  = 'U'
	maxOddNames = 1024
)

// tracker knows what a session's server was given to do and what it has answered:
// messages in, state out. It follows the rules of the protocol's description
// ("Message Flow") and, where these leave a choice to the server, takes the side
// on which more may have happened: what it calls surely rolled back is so.
//
// Work is counted in groups: a simple query, a function call, or all messages of
// the extended protocol up to a Sync. For each group there is one ReadyForQuery.
type tracker struct {
	walsender bool
	// lost: answers and groups do not match, for good. Then all is in doubt.
	lost bool

	sent, answered uint64 // groups
	status         byte   // of the last ReadyForQuery
	copying        State  // StateCopyIn, StateCopyOut, or 0

	group  group // the one being sent, or the last that was
	doubts doubts
	// As they were before the last Sync.
	syncedGroup  group
	syncedDoubts doubts

	unnamed, portal class            // of the unnamed statement and portal
	odd             map[string]class // named statements other than plain ones; never forgotten
	oddPortal       bool             // a named portal may hold one of them
}

// group is what a client has sent towards one ReadyForQuery.
type group struct {
	open   bool // its end was not sent yet
	simple bool
	base   byte // the transaction status in which its next statement runs
	acts   bool // something in it takes effect when its implicit transaction ends
	commit bool // it may end a transaction block
}

// doubts are the groups of which it is unknown, until they are answered, whether
// they took effect.
type doubts struct {
	first, last uint64 // their numbers
	// end is where in the client's stream the first was complete: what the server
	// did not get whole, it did not do.
	end int64
}

func newTracker(walsender bool) tracker { return tracker{walsender: walsender, status: outside} }

func (t *tracker) state() State {
	outstanding := t.sent - t.answered
	if t.group.open {
		outstanding++
	}
	switch {
	case t.walsender:
		return StateWalsender
	case t.copying != 0:
		return t.copying
	case outstanding > 1 && !t.lost:
		return StatePipeline
	case outstanding > 0 && !t.lost && t.group.commit:
		return StateCommitting
	case outstanding > 0 && !t.lost:
		return StateBusy
	case t.status == inBlock:
		return StateTransaction
	case t.status == inFailed:
		return StateFailed
	}
	return StateIdle
}

// busy reports whether the server owes an answer, or is owed the rest of a
// question.
func (t *tracker) busy() bool {
	return t.lost || t.sent != t.answered || t.group.open
}

// inDoubt reports whether the server may have committed something that it has
// not answered, if it got so many bytes of the client's stream.
func (t *tracker) inDoubt(got int64) bool {
	return t.lost || t.doubts.last > t.answered && got >= t.doubts.end
}

// doubt marks the group that is being sent, of which a message ends at end.
func (t *tracker) doubt(end int64) {
	number := t.sent
	if t.group.open {
		number++
	}
	if t.doubts.last <= t.answered {
		t.doubts.first, t.doubts.end = number, end
	}
	t.doubts.last = number
}

// begin is the first message of a group.
func (t *tracker) begin(simple bool) {
	base := t.status
	if t.busy() {
		base = unknownNow
	}
	t.group = group{open: true, simple: simple, base: base}
}

// extended is any message of a group of the extended protocol.
func (t *tracker) extended() {
	if !t.group.open {
		t.begin(false)
	}
}

// fromClient takes a message to the server that ends, or will have ended, at end
// in the client's stream.
func (t *tracker) fromClient(f pgwire.Frame, end int64) {
	if t.walsender {
		return
	}
	switch f.Kind {
	case 'Q':
		t.query(f, end)
	case 'F':
		if t.group.open {
			t.lost = true // it ends what a Sync should have ended
		}
		t.begin(true)
		t.own(end)
		t.close()
	case 'P':
		t.extended()
		t.parse(f)
	case 'B':
		t.extended()
		t.bind(f.Body)
	case 'E':
		t.extended()
		t.execute(f.Body, end)
	case 'C', 'D', 'H':
		t.extended()
	case 'S':
		t.sync(end)
	case 'c', 'f':
		t.copyEnd(f.Kind, end)
	}
}

// close is the end of a group.
func (t *tracker) close() {
	t.group.open = false
	t.sent++
}

func (t *tracker) query(f pgwire.Frame, end int64) {
	if t.group.open {
		t.lost = true
	}
	t.begin(true)
	text, _, whole := bytes.Cut(f.Body, []byte{0})
	statements(text, func(c class) { t.run(c, end) })
	if !whole { // of the rest nothing is known
		t.run(classEnd, end)
		t.doubt(end)
	}
	t.close()
}

// run takes a statement that is given to the server to execute.
func (t *tracker) run(c class, end int64) {
	g := &t.group
	switch g.base {
	case inBlock:
		if c == classEnd {
			g.commit = true
			t.doubt(end)
		}
		if c == classEnd || c == classRollback {
			g.base = outside
		}
		return
	case inFailed: // COMMIT rolls back, too
		if c == classEnd || c == classRollback {
			g.base = outside
		}
		return
	}
	switch c {
	case classBegin:
		g.base = inBlock
	case classPlain, classCopyIn:
		switch {
		case !g.simple:
			g.acts = true
		case c == classPlain: // COPY needs its data first
			t.doubt(end)
		}
	case classEnd:
		if g.base == unknownNow || g.acts || g.simple {
			g.commit = true
			t.doubt(end)
		}
	case classOwn:
		t.own(end)
	}
}

// own is something that commits by itself, unless in a transaction block.
func (t *tracker) own(end int64) {
	if t.group.base == outside || t.group.base == unknownNow {
		t.doubt(end)
	}
}

func (t *tracker) sync(end int64) {
	if t.copying == StateCopyIn {
		return // the server ignores it
	}
	t.extended()
	t.syncedGroup, t.syncedDoubts = t.group, t.doubts
	if t.group.acts && (t.group.base == outside || t.group.base == unknownNow) {
		t.doubt(end)
	}
	t.close()
}

// copyEnd is the end of the data for COPY, or what gives it up.
func (t *tracker) copyEnd(kind byte, end int64) {
	switch {
	case t.copying != StateCopyIn && t.sent-t.answered > 0 && !t.group.simple:
		// Sent before the server asked for it: then what a Sync before it does
		// depends on whether the server asks.
		t.lost = true
	case kind == 'c' && t.group.simple:
		t.own(end)
	}
	if t.copying == StateCopyIn {
		t.copying = 0
	}
}

// parse remembers what a statement of the client's can do.
func (t *tracker) parse(f pgwire.Frame) {
	name, rest, ok := bytes.Cut(f.Body, []byte{0})
	text, _, whole := bytes.Cut(rest, []byte{0})
	c := classEnd
	if ok {
		c = classify(text)
	}
	var space keyword
	if _, more := word(text, &space); !whole && (c != classPlain && c != classOwn || len(more) == 0) {
		c = classEnd // the words that matter may be still to come
	}
	if len(name) == 0 {
		t.unnamed = c
		return
	}
	// The server may refuse this statement and keep an older one of that name, so
	// what was ever odd stays so.
	before, known := t.odd[string(name)]
	switch {
	case known && before != c:
		t.odd[string(name)] = classEnd
	case !known && c != classPlain && len(t.odd) < maxOddNames:
		if t.odd == nil {
			t.odd = map[string]class{}
		}
		t.odd[string(name)] = c
	}
}

func (t *tracker) bind(body []byte) {
	portal, rest, _ := bytes.Cut(body, []byte{0})
	name, _, ok := bytes.Cut(rest, []byte{0})
	c := t.unnamed
	if len(name) > 0 {
		c = t.named(name)
	}
	if !ok {
		c = classEnd
	}
	if len(portal) == 0 {
		t.portal = c
	} else if c != classPlain {
		t.oddPortal = true
	}
}

func (t *tracker) named(name []byte) class {
	if len(t.odd) == 0 {
		return classPlain
	}
	c, known := t.odd[string(name)]
	if !known && len(t.odd) >= maxOddNames {
		return classEnd
	}
	return c // plain if it is not known
}

func (t *tracker) execute(body []byte, end int64) {
	c := t.portal
	if len(body) == 0 || body[0] != 0 {
		c = classPlain
		if t.oddPortal {
			c = classEnd
		}
	}
	t.run(c, end)
}

// fromServer takes a message to the client.
func (t *tracker) fromServer(f pgwire.Frame) {
	if t.walsender {
		return
	}
	switch f.Kind {
	case 'Z':
		t.ready(f.Body)
	case 'G':
		t.copyIn()
	case 'H':
		t.copying = StateCopyOut
	case 'c':
		t.copying = 0
	case 'E':
		t.copying = 0
		// The rest of the group is skipped, a Parse or Bind in it too: what the
		// unnamed ones are now is known when they are made again.
		t.unnamed, t.portal = classEnd, classEnd
	}
}

func (t *tracker) ready(body []byte) {
	t.copying = 0
	t.status = unknownNow
	if len(body) == 1 {
		t.status = body[0]
	}
	if t.answered == t.sent {
		t.lost = true
		return
	}
	t.answered++
	if t.doubts.first <= t.answered && t.doubts.last > t.answered {
		t.doubts.first, t.doubts.end = t.answered+1, 0 // the next is at most as far
	}
	if t.sent == t.answered && t.status == outside {
		t.oddPortal = false // portals end with their transaction
	}
}

// copyIn is the server's request for COPY's data. In the extended protocol it
// ignores a Sync that it gets before the end of the data: the group goes on.
func (t *tracker) copyIn() {
	t.copying = StateCopyIn
	if t.group.simple && t.sent-t.answered == 1 || t.sent == t.answered {
		return
	}
	if t.sent-t.answered > 1 || t.group.open {
		t.lost = true
		return
	}
	t.sent--
	t.group, t.doubts = t.syncedGroup, t.syncedDoubts
}
