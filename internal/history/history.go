// Package history keeps what clients saw of their writes, and checks against
// what the database holds afterwards that nothing acknowledged is missing and
// nothing was done twice. It knows no database: its owner writes rows with the
// numbers that it gives out, and hands it the numbers that are there in the end.
package history

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// Outcome is what a client knows of its write.
type Outcome uint8

const (
	// InDoubt: it was sent and not answered, so it may be there or not. Every
	// write is in doubt until End says otherwise.
	InDoubt Outcome = iota
	// Acknowledged: the server said that it is committed.
	Acknowledged
	// Failed: the server said that it is not, or it was never sent.
	Failed
)

// String returns the word for o.
func (o Outcome) String() string {
	switch o {
	case Acknowledged:
		return "acknowledged"
	case Failed:
		return "failed"
	default:
		return "in doubt"
	}
}

// Write is one row that a client wanted to write.
type Write struct {
	ID      int64 // unique in its Ledger, from 1
	Outcome Outcome
	Begun   time.Time
	Ended   time.Time // when the client knew Outcome; zero if it never did
}

// Ledger is the list of all writes. The zero Ledger is empty and ready; its
// methods may be called from several goroutines.
type Ledger struct {
	mu     sync.Mutex
	writes []Write // Write n is writes[n-1]
}

// Begin enters a new write, in doubt, and returns its number for the row.
func (l *Ledger) Begin() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	id := int64(len(l.writes) + 1)
	l.writes = append(l.writes, Write{ID: id, Begun: time.Now()})
	return id
}

// End says what became of the write that Begin gave the number id. It panics if
// there is none, or if it had ended: that is a mistake of the caller.
func (l *Ledger) End(id int64, o Outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := &l.writes[id-1]
	if !w.Ended.IsZero() {
		panic(fmt.Sprintf("history: write %d ended twice", id))
	}
	w.Outcome, w.Ended = o, time.Now()
}

// Writes returns a copy of all writes in the order in which they began.
func (l *Ledger) Writes() []Write {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.writes)
}

// Count returns how many writes have the outcome o now.
func (l *Ledger) Count(o Outcome) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, w := range l.writes {
		if w.Outcome == o {
			n++
		}
	}
	return n
}

// AcknowledgedAfter returns the first acknowledgement, in time, of a write that
// began at t or later; false if there is none yet. With t the moment at which a
// fault took effect, its distance to t is the outage; where that moment is not
// known, see Outage.
func (l *Ledger) AcknowledgedAfter(t time.Time) (first time.Time, ok bool) {
	for _, w := range l.Writes() {
		if w.Outcome == Acknowledged && !w.Begun.Before(t) && (!ok || w.Ended.Before(first)) {
			first, ok = w.Ended, true
		}
	}
	return first, ok
}

// Outage returns the longest time without an acknowledgement between two: what
// a fault cost the clients. Zero while there are less than two.
func (l *Ledger) Outage() time.Duration {
	var acknowledged []time.Time
	for _, w := range l.Writes() {
		if w.Outcome == Acknowledged {
			acknowledged = append(acknowledged, w.Ended)
		}
	}
	slices.SortFunc(acknowledged, time.Time.Compare)
	var longest time.Duration
	for i := 1; i < len(acknowledged); i++ {
		longest = max(longest, acknowledged[i].Sub(acknowledged[i-1]))
	}
	return longest
}

// Report is what Check found. Numbers are in rising order.
type Report struct {
	Acknowledged, Failed, InDoubt int // writes
	InDoubtThere                  int // writes in doubt whose row is there

	Missing []int64 // acknowledged, and the row is not there
	Ghosts  []int64 // failed, and the row is there
	Twice   []int64 // the row is there more than once
	Strange []int64 // the row is there, and no write has that number
}

// Check compares the writes with the numbers of the rows that are there, in any
// order. The clients must have ended.
func (l *Ledger) Check(there []int64) Report {
	rows := map[int64]int{}
	for _, id := range there {
		rows[id]++
	}
	var r Report
	for _, w := range l.Writes() {
		n := rows[w.ID]
		delete(rows, w.ID)
		if n > 1 {
			r.Twice = append(r.Twice, w.ID)
		}
		switch w.Outcome {
		case Acknowledged:
			r.Acknowledged++
			if n == 0 {
				r.Missing = append(r.Missing, w.ID)
			}
		case Failed:
			r.Failed++
			if n > 0 {
				r.Ghosts = append(r.Ghosts, w.ID)
			}
		default:
			r.InDoubt++
			if n > 0 {
				r.InDoubtThere++
			}
		}
	}
	for id := range rows {
		r.Strange = append(r.Strange, id)
	}
	slices.Sort(r.Strange)
	return r
}

// String is one line for a person.
func (r Report) String() string {
	return fmt.Sprintf("%d acknowledged, %d failed, %d in doubt (%d of them there)", r.Acknowledged, r.Failed, r.InDoubt, r.InDoubtThere)
}

// Err returns nil if the database holds what the clients were told, and
// otherwise says what is wrong.
func (r Report) Err() error {
	var wrong []string
	for _, c := range []struct {
		ids  []int64
		what string
	}{
		{r.Missing, "acknowledged but missing"},
		{r.Ghosts, "failed but there"},
		{r.Twice, "there more than once"},
		{r.Strange, "there but never written"},
	} {
		if len(c.ids) > 0 {
			wrong = append(wrong, fmt.Sprintf("%d %s: %v", len(c.ids), c.what, c.ids[:min(len(c.ids), 10)]))
		}
	}
	if wrong == nil {
		return nil
	}
	return fmt.Errorf("rows are not what clients were told: %s (%s)", strings.Join(wrong, "; "), r)
}
