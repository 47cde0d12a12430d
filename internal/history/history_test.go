package history

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func ledger(outcomes ...Outcome) *Ledger {
	var l Ledger
	for _, o := range outcomes {
		if id := l.Begin(); o != InDoubt {
			l.End(id, o)
		}
	}
	return &l
}

func TestWhatIsThereIsWhatClientsWereTold(t *testing.T) {
	for name, there := range map[string][]int64{
		"a write in doubt that came through":    {1, 3},
		"a write in doubt that did not, either": {1},
	} {
		if err := ledger(Acknowledged, Failed, InDoubt).Check(there).Err(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEachLieIsFound(t *testing.T) {
	for want, there := range map[string][]int64{
		"acknowledged but missing: [1]": {3},
		"failed but there: [2]":         {1, 2},
		"there more than once: [1]":     {1, 1},
		"there more than once: [3]":     {1, 3, 3},
		"there but never written: [4]":  {1, 4},
	} {
		err := ledger(Acknowledged, Failed, InDoubt).Check(there).Err()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("rows %v: %v, want %q", there, err, want)
		}
	}
}

func TestTheOutageIsTheLongestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Ledger
		acknowledge := func(after time.Duration) {
			id := l.Begin()
			time.Sleep(after)
			l.End(id, Acknowledged)
		}
		time.Sleep(time.Hour) // nobody had written yet
		acknowledge(time.Second)
		if got := l.Outage(); got != 0 {
			t.Errorf("outage %v after one write, want 0", got)
		}
		slow := l.Begin() // ends in the middle of the silence
		acknowledge(time.Second)
		time.Sleep(2 * time.Second)
		l.End(l.Begin(), Failed) // no sign of life
		time.Sleep(time.Second)
		l.End(slow, Acknowledged)
		acknowledge(2 * time.Second)
		if got := l.Outage(); got != 3*time.Second {
			t.Errorf("outage %v, want 3s", got)
		}
	})
}

func TestTheFirstWriteAfterAFaultBeganAfterIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Ledger
		early := l.Begin()
		time.Sleep(time.Second)
		fault := time.Now()
		l.End(early, Acknowledged)
		if _, ok := l.AcknowledgedAfter(fault); ok {
			t.Error("a write that began before the fault counts")
		}
		slow, fast := l.Begin(), l.Begin()
		time.Sleep(time.Second)
		l.End(fast, Acknowledged)
		time.Sleep(time.Second)
		l.End(slow, Acknowledged)
		if at, ok := l.AcknowledgedAfter(fault); !ok || at.Sub(fault) != time.Second {
			t.Errorf("first after %v, %v; want 1s", at.Sub(fault), ok)
		}
	})
}

func TestManyClientsGetDifferentNumbers(t *testing.T) {
	var l Ledger
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				l.End(l.Begin(), Acknowledged)
			}
		})
	}
	wg.Wait()
	var there []int64
	for _, w := range l.Writes() {
		there = append(there, w.ID)
	}
	if r := l.Check(there); r.Err() != nil || r.Acknowledged != 800 || l.Count(Acknowledged) != 800 {
		t.Errorf("%v: %v", r, r.Err())
	}
}

func TestAWriteEndsOnce(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	l := ledger(Acknowledged)
	l.End(1, Failed)
}
