package e2e

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgfailproxy/admin"
	"pgfailproxy/e2e/stack"
)

func TestTheOldPrimaryComesBackAndGetsNoByte(t *testing.T) {
	w := newWorld(t)
	w.sql("pg1", "CREATE ROLE app LOGIN PASSWORD 'app'")
	w.sql("pg1", "CREATE TABLE visits AS SELECT 1 AS n")
	w.sql("pg1", "ALTER SYSTEM SET log_connections = 'authorization'")
	w.fault(w.Kill, "pg1")
	w.awaitPrimary("pg2")
	back := time.Now()
	w.fault(w.Start, "pg1")
	w.await("the proxy sees that the old primary takes writes", func(s admin.Status) bool {
		return slices.ContainsFunc(s.Members, func(m admin.Member) bool {
			return m.Name == "pg1" && m.Reach == "answered" && m.Role == "primary"
		})
	})

	visits := 0
	visit := func(when string) {
		t.Helper()
		out, err := w.bash("pg2", `for i in $(seq 10); do PGPASSWORD=app psql -XAtq -h proxy -p 6432 -U app -d postgres -c "`+whereAmI+`" || exit 1; done`)
		visits += 10
		if err != nil || strings.Trim(out, "pg2\n") != "" {
			t.Errorf("%s: sessions landed on %q: %v", when, out, err)
		}
		if err := same(w.ask("INSERT INTO visits VALUES (2) RETURNING current_setting('cluster_name')"), "pg2"); err != nil {
			t.Errorf("%s: a write: %v", when, err)
		}
	}
	visit("as it came back")
	// The configuration lists pg1 first.
	w.fault(w.Kill, stack.Proxy)
	w.fault(w.Start, stack.Proxy)
	visit("after the proxy was killed")
	w.fault(w.Stop, stack.Proxy)
	w.fault(w.Start, stack.Proxy)
	visit("after the proxy was stopped")
	w.isTrue(w.awaitPrimary("pg2"), "pg2", 2)

	log, err := w.Logs(w.ctx, "pg1", back)
	w.must(err)
	if !strings.Contains(log, "user=pgfailproxy") {
		t.Error("pg1 logs no connection at all: this test proves nothing")
	}
	if n := strings.Count(log, "user=app"); n > 0 {
		t.Errorf("%d of %d sessions reached the old primary", n, visits)
	}
	if err := same(w.sql("pg1", "SELECT sum(n) FROM visits"), "1"); err != nil {
		t.Errorf("rows on the old primary: %v", err)
	}
}

func TestTwoFailoversInARow(t *testing.T) {
	w := newWorld(t)
	clients := w.startWriters(2)
	clients.await(50)
	w.fault(w.Stop, "pg1")
	clients.await(50)
	w.isTrue(w.awaitPrimary("pg2"), "pg2", 2)

	if err := w.Rejoin(w.ctx, "pg2"); err == nil || !strings.Contains(err.Error(), "refused: the primary is pg2") {
		t.Errorf("rebuilding the primary: %v, want it refused", err)
	}
	w.must(w.Rejoin(w.ctx, "pg1"))
	clients.await(50)
	w.fault(w.Stop, "pg2")
	clients.await(50)
	s := w.awaitPrimary("pg1")
	w.isTrue(s, "pg1", 3)
	if s.Timeline != 3 || len(s.Failovers) != 2 || s.Failovers[0].From != "pg2" {
		t.Errorf("timeline %d, failovers %+v; want two, the newest first", s.Timeline, s.Failovers)
	}
	if err := clients.check("pg1").Err(); err != nil {
		t.Error(err)
	}
}

// The proxy is killed at any moment of a failover, and started again: it finds
// its record, and finishes or undoes what was begun.
func TestTheProxyIsKilledDuringAFailover(t *testing.T) {
	for i := range 6 {
		// Without the kill, a failover would go on from about 0.1 s to 0.5 s
		// after the command that kills the primary began, and from 1 s to 2.2 s
		// after one that cuts it off, which takes a time-out to notice.
		third := time.Duration(i / 2)
		fault, cut := "killed", i%2 == 1
		delay := 100*time.Millisecond + third*110*time.Millisecond + rand.N(110*time.Millisecond)
		if cut {
			fault, delay = "cut off", 1200*time.Millisecond+third*300*time.Millisecond+rand.N(300*time.Millisecond)
		}
		t.Run(fmt.Sprintf("%v after the primary is %s", delay, fault), func(t *testing.T) {
			w := newWorld(t)
			w.sql("pg1", "CREATE TABLE r AS SELECT 1")
			var wg sync.WaitGroup
			wg.Go(func() {
				time.Sleep(delay) // the point of the test: it may be any
				if err := w.Kill(w.ctx, stack.Proxy); err != nil {
					t.Error(err)
				}
			})
			if cut {
				w.fault(w.Disconnect, "pg1")
			} else {
				w.fault(w.Kill, "pg1")
			}
			wg.Wait()
			started := time.Now()
			w.fault(w.Start, stack.Proxy)
			s := w.awaitPrimary("pg2")
			w.isTrue(s, "pg2", 2)
			log, err := w.Logs(w.ctx, stack.Proxy, started)
			w.must(err)
			t.Logf("it began again with: %.600s", log)
			if err := same(w.ask("INSERT INTO r VALUES (2) RETURNING current_setting('cluster_name')"), "pg2"); err != nil {
				t.Errorf("a client: %v", err)
			}
			if cut { // it comes back as it was, a primary that takes writes
				w.fault(w.Connect, "pg1")
				w.await("the proxy sees it", func(s admin.Status) bool {
					return slices.ContainsFunc(s.Members, func(m admin.Member) bool { return m.Name == "pg1" && m.Reach == "answered" })
				})
				w.isTrue(w.status(), "pg2", 2)
			}
		})
	}
}
