package e2e

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pgfailproxy/internal/history"
)

// writers are clients that write unique rows through the port, and connect
// again when their connection is lost.
type writers struct {
	w      *world
	ledger history.Ledger
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// startWriters makes the table and starts n clients. They end with the test, or
// when check is called.
func (w *world) startWriters(n int) *writers {
	w.t.Helper()
	conn := w.connect()
	_, err := conn.Exec(w.ctx, "CREATE TABLE ledger (id bigint)") // no key: a row written twice must show
	w.must(err)
	closeNow(conn)
	ctx, cancel := context.WithCancel(w.ctx)
	all := &writers{w: w, cancel: cancel}
	for range n {
		all.wg.Go(func() { all.run(ctx) })
	}
	w.t.Cleanup(all.stop)
	return all
}

// stop ends the clients once they have the answer that they wait for.
func (a *writers) stop() {
	a.cancel()
	a.wg.Wait()
}

func (a *writers) run(until context.Context) {
	var conn *pgx.Conn
	for until.Err() == nil {
		if conn == nil {
			ctx, cancel := context.WithTimeout(a.w.ctx, 30*time.Second)
			conn, _ = pgx.Connect(ctx, a.w.URL())
			cancel()
			if conn == nil {
				time.Sleep(20 * time.Millisecond)
				continue
			}
		}
		if err := a.write(a.w.ctx, conn); err != nil {
			closeNow(conn)
			conn = nil
		}
	}
	if conn != nil {
		closeNow(conn)
	}
}

// write writes one row, and enters what the client may believe of it.
func (a *writers) write(ctx context.Context, conn *pgx.Conn) error {
	id := a.ledger.Begin()
	_, err := conn.Exec(ctx, "INSERT INTO ledger VALUES ($1)", id)
	var refused *pgconn.PgError
	switch {
	case err == nil:
		a.ledger.End(id, history.Acknowledged)
	case pgconn.SafeToRetry(err):
		a.ledger.End(id, history.Failed) // it was never sent
	case errors.As(err, &refused) && refused.Severity == "ERROR":
		a.ledger.End(id, history.Failed)
	}
	// Whatever else: the end of the connection says nothing of the row.
	return err
}

// await waits until n more rows are acknowledged.
func (a *writers) await(n int) {
	a.w.t.Helper()
	want := a.ledger.Count(history.Acknowledged) + n
	a.w.poll(func() error {
		if got := a.ledger.Count(history.Acknowledged); got < want {
			return fmt.Errorf("%d rows acknowledged, want %d", got, want)
		}
		return nil
	})
}

// check ends the clients and compares what they saw with what a member holds.
func (a *writers) check(member string) history.Report {
	a.w.t.Helper()
	a.stop()
	var there []int64
	for line := range strings.Lines(a.w.sql(member, "SELECT id FROM ledger")) {
		id, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
		a.w.must(err)
		there = append(there, id)
	}
	report := a.ledger.Check(there)
	a.w.t.Logf("rows on %s: %v", member, report)
	return report
}
