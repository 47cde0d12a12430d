package failover

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"pgfailproxy/cluster"
)

func TestAMemberPromotedByHandIsNoReasonToPromoteAThirdAlsoWhileHeld(t *testing.T) {
	out := play(t, `members pg1 pg2 pg3
record epoch=2 timeline=1 primary=pg1 held seen=1:0/5000000
+0s pg2 primary 2:0/5000100
+0s pg3 standby 1:0/5000000
+0s pg1 refused
+100ms pg1 refused
+100ms pg1 refused
`)
	if strings.Contains(out, "do fence pg3") {
		t.Errorf("a third is being promoted:\n%s", out)
	}
}

// dying ends when pg2, which has most, is to be fenced.
const dying = `members pg1 pg2 pg3
record epoch=1 timeline=1 primary=pg1 seen=1:0/5000000
+0s pg1 primary 1:0/5000000
+0s pg2 standby 1:0/5000000
+0s pg3 standby 1:0/4FFFF00
+1s pg1 refused
+0s pg1 refused
+0s pg1 refused
stored
`

func TestOneErrorAfterAWaitIsNoReasonToTakeAStandbyThatHasLess(t *testing.T) {
	out := play(t, dying+`again fence pg2
+3s pg1 refused
again fence pg2
+3s pg1 refused
error fence pg2
`)
	if strings.Contains(out, "do fence pg3") {
		t.Errorf("one error turned to a standby that has less:\n%s", out)
	}
}

func TestACandidateWhoseReplayGetsOnIsNotGivenUp(t *testing.T) {
	out := play(t, dying+`again fence pg2
+4s pg2 standby 1:0/5000100
again fence pg2
+4s pg2 standby 1:0/5000200
again fence pg2
+4s pg2 standby 1:0/5000300
again fence pg2
`)
	if strings.Contains(out, "do fence pg3") {
		t.Errorf("given up although its replay gets on:\n%s", out)
	}
}

func TestAStandbyFencedInVainIsSentBackAlsoAfterAnotherWasPromoted(t *testing.T) {
	out := play(t, dying+`done fence pg2
+0s pg3 standby 1:0/5000100
done drain pg2 1:0/5000000
done fence pg3
done drain pg3 1:0/5000100
stored
done promote pg3
done verify pg3 2:0/5000200
stored
+1s pg3 primary 2:0/5000200
+60s pg3 primary 2:0/5000300
`)
	if !strings.Contains(out, "do unfence pg2") {
		t.Errorf("pg2 stays fenced and nobody is told:\n%s", out)
	}
}

func TestEachFailoverTellsOfAStandbyThatCannotBeSentBack(t *testing.T) {
	script := `members pg1 pg2
record epoch=1 timeline=1 primary=pg1 seen=1:0/5000000
+0s pg1 primary 1:0/5000000
+0s pg2 standby 1:0/5000000
+1s pg1 refused
+0s pg1 refused
+0s pg1 refused
stored
done fence pg2
+0s pg1 primary 1:0/5000000
done drain pg2 1:0/5000000
stored
error unfence pg2
+1s pg1 refused
+0s pg1 refused
+0s pg1 refused
stored
done fence pg2
done drain pg2 1:0/5000000
stored
done promote pg2
done verify pg2 2:0/5000200
stored
+1s pg1 standby 2:0/5000200
+1s pg2 refused
+0s pg2 refused
+0s pg2 refused
stored
done fence pg1
done drain pg1 2:0/5000200
stored
done promote pg1
done verify pg1 3:0/5000300
stored
+1s pg2 standby 3:0/5000300
+1s pg1 refused
+0s pg1 refused
+0s pg1 refused
stored
done fence pg2
+0s pg1 primary 3:0/5000300
done drain pg2 3:0/5000300
stored
error unfence pg2
`
	out := play(t, script)
	if n := strings.Count(out, "cannot be sent back to streaming"); n != 2 {
		t.Errorf("told %d times, want once for each failover:\n%s", n, out)
	}
}

// An error that is both: the privilege was refused in the moment in which time
// ran out.
func TestARefusalAtTheEndOfTimeIsARefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Controller{opts: Options{
			Hands:   refusing{newScene()},
			NotYet:  func(err error) bool { return errors.Is(err, errNotYet) },
			Refused: func(err error) bool { return errors.Is(err, errDenied) },
			Log:     slog.New(slog.DiscardHandler),
		}}
		ev, _ := c.carryOut(t.Context(), Do{Step: StepDrain, Member: "pg2"})
		m, err := NewMachine(testPolicy, []string{"pg1", "pg2"}, cluster.Record{Revision: 1, Epoch: 2, System: 7, Timeline: 1, Primary: "pg1", Held: true})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if r := recover(); r != nil {
				t.Errorf("panic: %v", r)
			}
		}()
		m.Step(m.now, ev)
	})
}

type refusing struct{ *scene }

func (refusing) Drain(_ context.Context, member string) (cluster.Position, error) {
	return cluster.Position{}, errors.Join(errNotYet, errDenied)
}
