package relay

import (
	"sync"
	"syscall"
	"testing"
)

// still is a carrier that does nothing: the test carries.
type still struct{}

func (still) changed() {}
func (still) cut()     {}

func newFlow() *Flow {
	f := &Flow{mover: &Mover{}, carrier: still{}, mu: &sync.Mutex{}}
	f.begin(Pair{})
	return f
}

// Nobody reads a side whose bytes cannot be written any more, so its end is never
// seen: the pair must not wait for it.
func TestAPairOfWhichNeitherSideTakesMoreIsHandedBack(t *testing.T) {
	f := newFlow()
	f.wrote(A, []byte("question"), 0, syscall.EPIPE)
	if f.over {
		t.Fatal("what the server may say before it goes is not waited for")
	}
	f.wrote(B, []byte("answer"), 0, syscall.EPIPE)
	if !f.over || f.reason != Failed || f.from != B {
		t.Errorf("over: %v, %s of %s", f.over, f.reason, f.from)
	}
}

// A client that is gone, and a server that is not read and so does not read: both
// would wait for ever.
func TestASideThatFailedAndCannotBeReadIsNotWaitedFor(t *testing.T) {
	f := newFlow()
	f.wrote(A, []byte("pipelined"), 3, nil) // the server takes no more for now
	f.wrote(B, []byte("answer"), 0, syscall.ECONNRESET)
	if !f.over || f.reason != Failed || f.from != A {
		t.Errorf("over: %v, %s of %s", f.over, f.reason, f.from)
	}
	f = newFlow()
	f.wrote(B, []byte("answer"), 0, syscall.ECONNRESET)
	if f.over {
		t.Fatal("too early")
	}
	f.wrote(A, []byte("pipelined"), 3, nil)
	if !f.over || f.from != A {
		t.Errorf("over: %v, %s of %s", f.over, f.reason, f.from)
	}
}
