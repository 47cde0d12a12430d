package relay

// Mover moves the bytes of many pairs.
type Mover struct{}

// Flow is one pair that is being moved.
type Flow struct{}

// NewMover returns a mover with so many event loops; 0 means one for each core.
func NewMover(loops int) (*Mover, error) { return &Mover{}, nil }

// Start moves a pair, which the mover owns until done is called: once, in a
// goroutine of its own. Without a watcher everything passes, ends too.
func (m *Mover) Start(p Pair, w Watcher, done func(Result)) *Flow { panic("not yet") }

// Moved returns the bytes written so far to B and to A, of all flows.
func (m *Mover) Moved() (aToB, bToA int64) { return 0, 0 }

// Close ends the mover. All flows must be done.
func (m *Mover) Close() {}

// Stop asks for the pair at a message boundary: each direction is moved on until
// nothing of it is unseen, then the pair is handed back, and can be moved again.
func (f *Flow) Stop() {}

// Cut ends the flow at once, whatever is under way. When it returns, B gets not a
// byte more: it is closed with a reset, and what still waits to be sent to it is
// thrown away. A is handed back open.
func (f *Flow) Cut() {}

// Inspect calls do while the watcher is not being called. It works after the end
// too.
func (f *Flow) Inspect(do func()) { do() }

// Moved returns the bytes of this flow written so far to B and to A.
func (f *Flow) Moved() (aToB, bToA int64) { return 0, 0 }
