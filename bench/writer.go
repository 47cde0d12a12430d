package main

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// The writer's patience. A statement that hangs is left after a second; a
// connection is waited for, because the proxy holds it while there is no
// primary.
const (
	statementTimeout = 1 * time.Second
	connectTimeout   = 10 * time.Second
	backoff          = 5 * time.Millisecond
)

// writer writes unique rows in a tight loop, and connects again at once when its
// connection is lost, as an application with a plain retry does.
type writer struct {
	config *pgx.ConnConfig
	cancel context.CancelFunc
	done   chan struct{} // closed when the loop has ended
	moved  chan struct{} // closed at the first write on another timeline

	mu    sync.Mutex
	acked []int64   // rows that were acknowledged
	first string    // timeline of the first
	last  time.Time // when the last row of the first timeline was acknowledged
	again time.Time // when the first row of another was
}

// startWriter starts writing to the table bench_ledger. The caller calls stop.
func startWriter(ctx context.Context, conn string) (*writer, error) {
	config, err := pgx.ParseConfig(conn)
	if err != nil {
		return nil, err
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeExec // one round trip per row
	config.ConnectTimeout = connectTimeout
	ctx, cancel := context.WithCancel(ctx)
	w := &writer{config: config, cancel: cancel, done: make(chan struct{}), moved: make(chan struct{})}
	go w.run(ctx)
	return w, nil
}

// stop ends the loop and waits for it.
func (w *writer) stop() {
	w.cancel()
	<-w.done
}

func (w *writer) run(ctx context.Context) {
	defer close(w.done)
	var conn *pgx.Conn
	for id := int64(1); ctx.Err() == nil; id++ {
		if conn == nil {
			var err error
			if conn, err = pgx.ConnectConfig(ctx, w.config); err != nil {
				conn = nil
				time.Sleep(backoff)
				continue
			}
		}
		if err := w.write(ctx, conn, id); err != nil {
			closeNow(conn)
			conn = nil
			time.Sleep(backoff)
		}
	}
	if conn != nil {
		closeNow(conn)
	}
}

// closeNow closes without waiting for a server that may hang.
func closeNow(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	conn.Close(ctx)
}

// write writes a row and asks in the same statement on which timeline.
func (w *writer) write(ctx context.Context, conn *pgx.Conn, id int64) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	var timeline string
	err := conn.QueryRow(ctx, `INSERT INTO bench_ledger VALUES ($1)
		RETURNING substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)`, id).Scan(&timeline)
	if err != nil {
		return err
	}
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acked = append(w.acked, id)
	switch {
	case w.first == "":
		w.first, w.last = timeline, now
	case timeline == w.first:
		w.last = now
	case w.again.IsZero():
		w.again = now
		close(w.moved)
	}
	return nil
}

// seen returns how many rows were acknowledged, and when the last was on the
// first timeline and the first on another.
func (w *writer) seen() (rows int, last, again time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acked), w.last, w.again
}

// missing counts acknowledged rows that are not there. Call it after stop.
func (w *writer) missing(ctx context.Context, conn string) (int, error) {
	c, err := pgx.Connect(ctx, conn)
	if err != nil {
		return 0, err
	}
	defer c.Close(context.WithoutCancel(ctx))
	var found int
	err = c.QueryRow(ctx, "SELECT count(*) FROM bench_ledger WHERE id = ANY ($1)", w.acked).Scan(&found)
	return len(w.acked) - found, err
}
