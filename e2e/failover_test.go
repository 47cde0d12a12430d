package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgfailproxy/admin"
	"pgfailproxy/internal/history"
)

// goesOn lets clients write through the port, makes a fault of pg1, and checks
// that they go on writing on pg2 and that the proxy tells the truth of it. It
// returns the proxy's report, and what became of the rows.
func (w *world) goesOn(fault func(context.Context, string) error) (admin.Failover, history.Report) {
	w.t.Helper()
	w.sql("pg1", "CREATE TABLE next (n int)")
	clients := w.startWriters(4)
	clients.await(100)
	begun := time.Now()
	w.fault(fault, "pg1")
	made := time.Since(begun)

	// The very next connection works, and writes on the other server.
	if err := same(w.ask("INSERT INTO next VALUES (1) RETURNING current_setting('cluster_name')"), "pg2"); err != nil {
		w.t.Errorf("the next connection: %v", err)
	}
	clients.await(100) // on pg2, then
	rows := clients.check("pg2")
	status := w.awaitPrimary("pg2")
	w.isTrue(status, "pg2", 2)
	if len(status.Failovers) != 1 {
		w.t.Fatalf("%d failovers are reported, want 1", len(status.Failovers))
	}
	f := status.Failovers[0]
	w.t.Logf("writes were out for %v, the fault took %v to make; report: %+v", clients.ledger.Outage().Round(time.Millisecond), made.Round(time.Millisecond), f)
	if f.From != "pg1" || f.To != "pg2" || f.Epoch != 2 || f.Cause == "" || len(f.Phases) == 0 {
		w.t.Errorf("this is no report of the failover: %+v", f)
	}
	return f, rows
}

// synchronous makes every commit on pg1 wait for pg2, so that pg2 has received
// everything that was acknowledged, at any moment. Only pg1 has the setting:
// the new primary's commits must not wait.
func (w *world) synchronous() {
	w.t.Helper()
	w.sql("pg1", "ALTER SYSTEM SET synchronous_standby_names = '*'")
	w.sql("pg1", "SELECT pg_reload_conf()")
	w.poll(func() error { return same(w.sql("pg1", "SELECT sync_state FROM pg_stat_replication"), "sync") })
}

func TestThePrimaryIsStopped(t *testing.T) {
	w := newWorld(t)
	// It sends everything to its standby before it ends: nothing acknowledged
	// may be missing, although replication is asynchronous.
	_, rows := w.goesOn(w.Stop)
	if err := rows.Err(); err != nil {
		t.Error(err)
	}
}

func TestThePrimaryIsKilled(t *testing.T) {
	w := newWorld(t)
	w.synchronous()
	_, rows := w.goesOn(w.Kill)
	if err := rows.Err(); err != nil {
		t.Error(err)
	}
	w.readsAsOneStory()
}

func TestThePrimaryHangs(t *testing.T) {
	w := newWorld(t)
	w.synchronous()
	_, rows := w.goesOn(w.Pause)
	if err := rows.Err(); err != nil {
		t.Error(err)
	}
}

func TestThePrimaryIsCutOffTheNetwork(t *testing.T) {
	w := newWorld(t)
	w.synchronous()
	_, rows := w.goesOn(w.Disconnect)
	if err := rows.Err(); err != nil {
		t.Error(err)
	}
}

func TestWhatTheStandbyLacksIsInTheReport(t *testing.T) {
	w := newWorld(t)
	// The standby receives no more; the primary acknowledges all the same.
	w.sql("pg2", "ALTER SYSTEM SET primary_conninfo = ''")
	w.sql("pg2", "SELECT pg_reload_conf()")
	w.poll(func() error { return same(w.sql("pg1", "SELECT count(*) FROM pg_stat_replication"), "0") })
	w.sql("pg1", "CREATE TABLE lost AS SELECT generate_series(1, 1000)")
	w.sql("pg1", "CHECKPOINT")
	w.await("the proxy has seen that the standby lags", func(s admin.Status) bool {
		return slices.ContainsFunc(s.Members, func(m admin.Member) bool {
			return m.Name == "pg2" && m.LagBytes != nil && *m.LagBytes > 30_000
		})
	})
	w.fault(w.Kill, "pg1")
	s := w.awaitPrimary("pg2")
	f := s.Failovers[0]
	if f.Verdict != "at risk" || f.BytesAtRisk < 30_000 {
		t.Errorf("1000 rows are lost, the report says: %s, %d bytes", f.Verdict, f.BytesAtRisk)
	}
	if err := same(w.ask("SELECT to_regclass('lost') IS NULL"), "true"); err != nil {
		t.Errorf("the table is lost: %v", err)
	}
}

func TestABlipShorterThanTheThresholdIsNoFailover(t *testing.T) {
	w := newWorld(t)
	clients := w.startWriters(2)
	clients.await(20)
	idle := w.connect()
	w.fault(w.Pause, "pg1")
	s := w.await("the first miss", func(s admin.Status) bool {
		return slices.ContainsFunc(s.Members, func(m admin.Member) bool { return m.Name == "pg1" && m.Misses > 0 })
	})
	begun := time.Now()
	w.fault(w.Unpause, "pg1")
	if s.Held {
		t.Fatalf("held after one miss: %s", s.Why())
	}
	s = w.await("the primary is trusted again", func(s admin.Status) bool {
		return s.Served() && slices.ContainsFunc(s.Members, func(m admin.Member) bool {
			return m.Name == "pg1" && m.Misses == 0 && m.LastAnswer.After(begun)
		})
	})
	w.isTrue(s, "pg1", 1)
	if len(s.Failovers) > 0 {
		t.Errorf("a failover: %+v", s.Failovers)
	}
	if _, err := idle.Exec(w.ctx, "SELECT 1"); err != nil {
		t.Errorf("a session from before: %v", err)
	}
	clients.await(20)
	rows := clients.check("pg1")
	if err := rows.Err(); err != nil {
		t.Error(err)
	}
	if rows.InDoubt > 0 {
		t.Errorf("sessions were lost: %v", rows)
	}
}

// readsAsOneStory checks the proxy's log: from the first doubt to the end of the
// failover about ten lines, each for programs, with what each step took.
func (w *world) readsAsOneStory() {
	w.t.Helper()
	text, err := w.Logs(w.ctx, "proxy", time.Time{})
	w.must(err)
	var story []string
	steps := 0
	for line := range strings.Lines(text) {
		var entry struct {
			Time  time.Time
			Level string
			Msg   string
			Took  *float64
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil || entry.Time.IsZero() || entry.Level == "" || entry.Msg == "" {
			w.t.Errorf("not a log line for programs: %s", line)
		}
		if story == nil && !strings.Contains(entry.Msg, "in doubt") {
			continue // from before
		}
		story = append(story, fmt.Sprintf("%s %s", entry.Time.Format("05.000"), entry.Msg))
		if entry.Took != nil {
			steps++
		}
		if strings.HasPrefix(entry.Msg, "failover done") {
			break
		}
	}
	if n := len(story); n < 5 || n > 14 || steps < 5 || !strings.Contains(story[n-1], "failover done") {
		w.t.Errorf("%d lines, %d of them with the time that they took; want about ten, from the doubt to the end:\n%s", n, steps, strings.Join(story, "\n"))
	}
}
