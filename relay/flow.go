package relay

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
)

// Flow is one pair that is being moved. What it decides is here, with no I/O; its
// carrier, an event loop or two goroutines, reads and writes.
type Flow struct {
	mover   *Mover
	watcher Watcher // nil: everything passes
	done    func(Result)
	carrier carrier

	mu   *sync.Mutex // the carrier's; guards what follows
	ways [2]way      // by the side that is read
	// stopping: Stop was called, and a direction is in the middle of a message.
	stopping bool
	// failed is the first failure of a connection that could not be written to. It
	// is read to its end first, while it can be: a server says why it goes.
	failed error
	from   Side // Result.From

	over   bool // nothing more is decided; the pair is handed back
	reason Reason
	err    error
}

// carrier reads and writes for a flow. Its methods are called with the lock held.
type carrier interface {
	// changed is called when the flow's wishes have changed from outside.
	changed()
	// cut closes B with a reset. The flow is over.
	cut()
}

// way is one direction. At most one of kept and unwritten is longer than a
// message or two.
type way struct {
	kept, unwritten []byte
	keptIn          *keptBuffer // what kept is in; nil: not one of the pool
	unwrittenIn     *buffer     // the same for unwritten

	unseen int64
	moved  atomic.Int64
	ended  bool // the end of the side that is read was seen
	shut   bool // and was passed on; or nothing can be written any more
}

// begin takes what the pair brings along. The carrier then writes what is
// unwritten.
func (f *Flow) begin(p Pair) {
	for s := range f.ways {
		w := &f.ways[s]
		w.unwritten, w.unseen, w.ended = p.Unwritten[s], p.Unseen[s], p.Ended[s]
		if kept := p.Kept[s]; len(kept) > 0 {
			w.kept = kept
			passed := f.take(Side(s), kept)
			w.unwritten = append(w.unwritten[:len(w.unwritten):len(w.unwritten)], passed...)
		}
		if w.ended {
			w.unwritten = append(w.unwritten[:len(w.unwritten):len(w.unwritten)], w.kept...)
			w.keep(nil)
		}
	}
	f.settle()
}

// reads reports whether more of a side is wanted now: one that is not written as
// fast as it is read waits.
func (f *Flow) reads(from Side) bool {
	w := &f.ways[from]
	return !f.over && !w.ended && !w.shut && len(w.unwritten) == 0 && !(f.stopping && w.unseen == 0)
}

// writes reports whether something waits to be written to a side.
func (f *Flow) writes(to Side) bool {
	w := &f.ways[to.Other()]
	return !f.over && !w.shut && len(w.unwritten) > 0
}

// passesEnd reports whether the end of a side is to be passed on now.
func (f *Flow) passesEnd(from Side) bool {
	w := &f.ways[from]
	return !f.over && w.ended && !w.shut && len(w.unwritten) == 0
}

// take is given what arrived from a side, after what was kept of it, and returns
// how much of it is to be written now.
func (f *Flow) take(from Side, p []byte) []byte {
	w := &f.ways[from]
	if f.watcher == nil && !f.over && !f.stopping {
		w.keep(nil)
		return p
	}
	pass := int(min(w.unseen, int64(len(p))))
	w.unseen -= int64(pass)
	if pass == len(p) {
		return p
	}
	if f.over || f.stopping { // it was on its way when the flow stopped
		w.keep(p[pass:])
		return p[:pass]
	}
	v := f.watcher.Arrived(from, p[pass:])
	pass += v.Pass
	w.unseen = v.Unseen
	switch {
	case v.Stop:
		f.end(Stopped, from, nil)
	case len(p)-pass >= MaxKept:
		f.end(Failed, from, fmt.Errorf("a message's first %d bytes were not passed, more than may be kept", len(p)-pass))
	}
	w.keep(p[pass:])
	return p[:pass]
}

// wrote is told what became of an attempt to write p to the other side. The rest
// of p is kept, unless it is of unwritten already.
func (f *Flow) wrote(from Side, p []byte, n int, err error) {
	w := &f.ways[from]
	if n > 0 {
		w.moved.Add(int64(n))
		f.mover.moved[from].Add(int64(n))
	}
	w.remain(p[n:])
	if err != nil && !f.over {
		w.shut = true
		if f.failed == nil && !f.isEnd(err) {
			f.failed, f.from = err, from.Other()
		}
	}
	// A message that was under way may be whole now, or a side that failed cannot
	// be read any more.
	if err != nil || f.stopping || f.failed != nil {
		f.settle()
	}
}

// ended is told that a side sends nothing more: err is nil for an orderly end.
func (f *Flow) ended(from Side, err error) {
	w := &f.ways[from]
	switch {
	case f.over:
		return
	case f.failed != nil && f.from == from:
		f.end(Failed, from, f.failed)
		return
	case err != nil && !f.isEnd(err):
		f.end(Failed, from, err)
		return
	}
	w.ended = true
	if f.watcher != nil && !f.watcher.Ended(from) {
		f.end(Stopped, from, nil)
		return
	}
	if len(w.kept) > 0 { // nothing else is unwritten, or it would not have been read
		w.remain(w.kept)
		w.keep(nil)
	}
	f.settle()
}

// passed is told that an end was passed on, or could not be.
func (f *Flow) passed(from Side, err error) {
	if err != nil {
		f.wrote(from, nil, 0, err)
		return
	}
	f.ways[from].shut = true
	f.settle()
}

// isEnd reports whether an error is how a connection ends after the other has: a
// server closes before it has read its client's last record of TLS.
func (f *Flow) isEnd(err error) bool {
	return (f.ways[A].ended || f.ways[B].ended) && (errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE))
}

// settle ends the flow if nothing is left to do.
func (f *Flow) settle() {
	a, b := &f.ways[A], &f.ways[B]
	switch {
	case f.over:
	case f.failed != nil && !f.reads(f.from):
		f.end(Failed, f.from, f.failed)
	case f.failed == nil && a.shut && b.shut:
		f.end(Finished, A, nil)
	case f.stopping && a.whole() && b.whole():
		f.end(Stopped, A, nil)
	}
}

func (f *Flow) end(why Reason, from Side, err error) {
	f.over, f.reason, f.from, f.err = true, why, from, err
}

// Stop asks for the pair at a message boundary: each direction is moved on until
// nothing of it is unseen, then the pair is handed back, and can be moved again.
func (f *Flow) Stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return
	}
	f.stopping = true
	f.settle()
	f.carrier.changed()
}

// Cut ends the flow at once, whatever is under way. When it returns, B gets not a
// byte more: it is closed with a reset, and what still waits to be sent to it is
// thrown away. A is handed back open.
func (f *Flow) Cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return
	}
	f.end(WasCut, A, nil)
	f.carrier.cut()
}

// Inspect calls do while the watcher is not being called. It works after the end
// too. do must not call methods of a Flow.
func (f *Flow) Inspect(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
}

// Moved returns the bytes of this flow written so far to B and to A.
func (f *Flow) Moved() (aToB, bToA int64) {
	return f.ways[A].moved.Load(), f.ways[B].moved.Load()
}

// handBack gives the pair, which the carrier has let go of, to whom it belongs.
func (f *Flow) handBack(p Pair) {
	f.mu.Lock()
	r := Result{Pair: p, Reason: f.reason, From: f.from, Err: f.err}
	for s := range f.ways {
		w := &f.ways[s]
		r.Kept[s], r.Unwritten[s] = bytes.Clone(w.kept), bytes.Clone(w.unwritten)
		r.Unseen[s], r.Ended[s], r.Moved[s] = w.unseen, w.ended, w.moved.Load()
		w.keep(nil)
		w.remain(nil)
	}
	done := f.done
	f.mu.Unlock()
	done(r)
}

// whole reports whether the direction is at a message boundary.
func (w *way) whole() bool { return w.unseen == 0 || w.ended || w.shut }

// keep has p, which may be a part of what is kept already or of a buffer that is
// used again, as what is kept.
func (w *way) keep(p []byte) {
	if len(p) == 0 && w.kept == nil {
		return // as nearly always
	}
	if len(p) == 0 || len(p) > MaxKept {
		p = append([]byte(nil), p...)
		if w.keptIn != nil {
			keptBuffers.Put(w.keptIn)
			w.keptIn = nil
		}
		w.kept = p
		return
	}
	if w.keptIn == nil {
		w.keptIn = keptBuffers.Get().(*keptBuffer)
	}
	w.kept = w.keptIn[:copy(w.keptIn[:], p)]
}

// remain has p, which may be the end of what is unwritten already, as what is.
func (w *way) remain(p []byte) {
	switch {
	case len(p) == 0:
		if w.unwrittenIn != nil {
			unwrittenBuffers.Put(w.unwrittenIn)
		}
		w.unwritten, w.unwrittenIn = nil, nil
	case len(w.unwritten) > 0:
		w.unwritten = w.unwritten[len(w.unwritten)-len(p):]
	default:
		w.unwrittenIn = unwrittenBuffers.Get().(*buffer)
		w.unwritten = w.unwrittenIn[:copy(w.unwrittenIn[:], p)]
	}
}
