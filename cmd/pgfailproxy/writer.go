package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgfailproxy/internal/history"
	"pgfailproxy/internal/pgserver"
)

// writer is a client as many are: it writes rows one after the other, and
// connects again when its connection breaks.
type writer struct {
	ledger history.Ledger
	config *pgconn.Config
}

// newWriter makes the table through the port at addr.
func newWriter(ctx context.Context, addr string) (*writer, error) {
	config, err := pgconn.ParseConfig("postgres://" + pgserver.Superuser + "@" + addr + "/postgres?sslmode=disable")
	if err != nil {
		return nil, err
	}
	w := &writer{config: config}
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	// No key: a row that were written twice is to be seen.
	_, err = conn.Exec(ctx, "create table demo (id bigint, at timestamptz default clock_timestamp())").ReadAll()
	return w, err
}

// run writes until ctx ends.
func (w *writer) run(ctx context.Context) {
	for ctx.Err() == nil {
		conn, err := pgconn.ConnectConfig(ctx, w.config)
		if err != nil {
			continue // the proxy has clients wait, so this is no busy loop
		}
		for w.write(ctx, conn) {
		}
		conn.Conn().Close()
	}
}

// write writes one row and reports whether the connection is still good.
func (w *writer) write(ctx context.Context, conn *pgconn.PgConn) bool {
	if ctx.Err() != nil {
		return false
	}
	id := w.ledger.Begin()
	// Not ended by ctx: a write that was begun is answered or broken off.
	_, err := conn.Exec(context.WithoutCancel(ctx), "insert into demo values ("+strconv.FormatInt(id, 10)+")").ReadAll()
	var refused *pgconn.PgError
	switch {
	case err == nil:
		w.ledger.End(id, history.Acknowledged)
	case errors.As(err, &refused) && refused.Severity == "ERROR":
		w.ledger.End(id, history.Failed)
	default:
		w.ledger.End(id, history.InDoubt)
	}
	return err == nil
}

// check compares what the writer was told with the rows of the server at
// connString.
func (w *writer) check(ctx context.Context, connString string) (history.Report, error) {
	conn, err := pgconn.Connect(ctx, connString)
	if err != nil {
		return history.Report{}, err
	}
	defer conn.Close(ctx)
	results, err := conn.Exec(ctx, "select id from demo").ReadAll()
	if err != nil {
		return history.Report{}, err
	}
	var there []int64
	for _, row := range results[0].Rows {
		id, err := strconv.ParseInt(string(row[0]), 10, 64)
		if err != nil {
			return history.Report{}, fmt.Errorf("row %q: %w", row[0], err)
		}
		there = append(there, id)
	}
	return w.ledger.Check(there), nil
}

// outage is the time from fault to the first acknowledgement of a write that
// began after it; zero while there is none.
func (w *writer) outage(fault time.Time) time.Duration {
	first, ok := w.ledger.AcknowledgedAfter(fault)
	if !ok {
		return 0
	}
	return first.Sub(fault)
}
