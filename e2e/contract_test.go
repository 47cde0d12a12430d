package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"pgfailproxy/admin"
	"pgfailproxy/e2e/stack"
)

// Each is a client at work when its primary is killed, or stopped.
var contract = []struct {
	name string
	// begin brings the session to where it is to be; what it returns waits for the
	// outcome.
	begin func(w *world, c *pgx.Conn) (outcome func() error)
	code  string
}{
	{"idle", func(w *world, c *pgx.Conn) func() error { return next(w, c) }, "57P01"},
	{"idle in a transaction", func(w *world, c *pgx.Conn) func() error {
		w.exec(c, "BEGIN", "INSERT INTO told VALUES (2)")
		return next(w, c)
	}, "40001"},
	{"in a failed transaction", func(w *world, c *pgx.Conn) func() error {
		w.exec(c, "BEGIN")
		c.Exec(w.ctx, "SELECT 1/0")
		return next(w, c)
	}, "40001"},
	{"a statement of a transaction", func(w *world, c *pgx.Conn) func() error {
		w.exec(c, "BEGIN")
		return w.background(c, "INSERT INTO told SELECT 3 FROM pg_sleep(60)")
	}, "40001"},
	{"the end of a transaction", func(w *world, c *pgx.Conn) func() error {
		// A deferred trigger keeps the COMMIT under way.
		w.exec(c, "BEGIN", "INSERT INTO slow VALUES (4)")
		return w.background(c, "COMMIT")
	}, "08007"},
	{"a statement outside a transaction", func(w *world, c *pgx.Conn) func() error {
		return w.background(c, "INSERT INTO told SELECT 5 FROM pg_sleep(60)")
	}, "08007"},
	{"COPY, its data under way", func(w *world, c *pgx.Conn) func() error {
		// By hand: pgx would be writing when it is told.
		raw, err := c.PgConn().Hijack()
		w.must(err)
		w.t.Cleanup(func() { raw.Conn.Close() })
		raw.Frontend.Send(&pgproto3.Query{String: "COPY told FROM STDIN"})
		raw.Frontend.Send(&pgproto3.CopyData{Data: []byte("6\n")})
		w.must(raw.Frontend.Flush())
		return func() error {
			for {
				m, err := raw.Frontend.Receive()
				if err != nil {
					return err
				}
				if told, ok := m.(*pgproto3.ErrorResponse); ok {
					return pgconn.ErrorResponseToPgError(told)
				}
			}
		}
	}, "40001"},
}

// next is what the session's next statement gets.
func next(w *world, c *pgx.Conn) func() error {
	return func() error {
		_, err := c.Exec(w.ctx, "SELECT 1")
		return err
	}
}

func (w *world) exec(c *pgx.Conn, statements ...string) {
	w.t.Helper()
	for _, s := range statements {
		_, err := c.Exec(w.ctx, s)
		w.must(err)
	}
}

// background runs a statement that does not end by itself, and waits until the
// server is at it.
func (w *world) background(c *pgx.Conn, statement string) func() error {
	done := make(chan error, 1)
	pid := c.PgConn().PID()
	go func() {
		_, err := c.Exec(w.ctx, statement)
		done <- err
	}()
	w.poll(func() error {
		return same(w.sql("pg1", "SELECT wait_event FROM pg_stat_activity WHERE pid = "+fmt.Sprint(pid)), "PgSleep")
	})
	return func() error { return <-done }
}

func TestEachClientOfALostPrimaryIsToldWhatBecameOfItsWork(t *testing.T) {
	for name, fault := range map[string]func(*world){
		"kill": func(w *world) { w.fault(w.Kill, "pg1") },
		"stop": func(w *world) { w.fault(w.Stop, "pg1") },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.sql("pg1", `CREATE TABLE told (n int); CREATE TABLE slow (n int);
				CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$;
				CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()`)
			var outcomes []func() error
			for _, row := range contract {
				outcomes = append(outcomes, row.begin(w, w.connect()))
			}
			fault(w)
			for i, row := range contract {
				err := outcomes[i]()
				var told *pgconn.PgError
				switch {
				case !errors.As(err, &told):
					t.Errorf("%s: %v, want SQLSTATE %s", row.name, err, row.code)
				case told.Code != row.code || told.Severity != "FATAL" || told.Hint == "" || !strings.Contains(told.Detail, `Server "pg1"`):
					t.Errorf("%s: %s %s: %s (%s; %s), want %s", row.name, told.Severity, told.Code, told.Message, told.Detail, told.Hint, row.code)
				default:
					t.Logf("%s: %s: %s DETAIL: %s HINT: %s", row.name, told.Code, told.Message, told.Detail, told.Hint)
				}
			}
			w.await("pg2 is served", func(s admin.Status) bool { return s.Served() && s.Primary == "pg2" })
			// What was called rolled back is not there.
			if err := same(w.sql("pg2", "SELECT count(*) FROM told WHERE n IN (2, 3, 6)"), "0"); err != nil {
				t.Errorf("rows that were rolled back: %v", err)
			}
			out, err := w.Run(w.ctx, stack.Proxy, "", "pgfailproxy", "status", "--sessions")
			if err != nil || !strings.HasPrefix(out, "ID") {
				t.Errorf("status --sessions: %q, %v", out, err)
			}
		})
	}
}
