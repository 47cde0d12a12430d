package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pgfailproxy/admin"
	"pgfailproxy/e2e/stack"
)

// suite is what all tests share: one set of containers, made new for each.
var suite struct {
	ctx   context.Context // ends with Ctrl-C
	stack *stack.Stack
}

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		os.Exit(m.Run()) // each test says that it is left out
	}
	os.Exit(runAll(m))
}

func runAll(m *testing.M) (code int) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	suite.ctx = ctx
	started, cancel := context.WithTimeout(ctx, 10*time.Minute) // an empty build cache, a slow network
	defer cancel()
	var err error
	suite.stack, err = stack.Up(started, stack.Options{Project: "pgfailproxy-e2e"})
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := suite.stack.Down(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "e2e: clean up:", err)
			code = 1
		}
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e: start the containers:", err)
		if suite.stack != nil && ctx.Err() == nil {
			suite.stack.Dump(ctx, os.Stderr)
		}
		return 1
	}
	return m.Run()
}

// world is a primary pg1, its standby pg2 and the proxy, for one test. Its
// methods fail the test where the method of Stack returns an error.
type world struct {
	*stack.Stack
	t   *testing.T
	ctx context.Context
}

// newWorld makes everything new. If the test fails, its output ends with the
// logs.
func newWorld(t *testing.T) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("left out by -short: needs Docker with Compose")
	}
	ctx, cancel := context.WithTimeout(suite.ctx, 2*time.Minute)
	t.Cleanup(cancel)
	w := &world{suite.stack, t, ctx}
	t.Cleanup(func() {
		if t.Failed() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			w.Dump(ctx, t.Output())
		}
	})
	w.must(w.Reset(ctx))
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// fault makes a fault, one of Stack's methods.
func (w *world) fault(make func(context.Context, string) error, service string) {
	w.t.Helper()
	w.must(make(w.ctx, service))
}

// sql runs statements on a member, past the proxy.
func (w *world) sql(member, statements string) string {
	w.t.Helper()
	out, err := w.SQL(w.ctx, member, statements)
	w.must(err)
	return out
}

// connect opens a session through the port, as the superuser.
func (w *world) connect() *pgx.Conn {
	w.t.Helper()
	conn, err := pgx.Connect(w.ctx, w.URL())
	w.must(err)
	w.t.Cleanup(func() { closeNow(conn) })
	return conn
}

// ask opens a session through the port and returns the one value of a query.
func (w *world) ask(query string, args ...any) string {
	w.t.Helper()
	conn := w.connect()
	defer closeNow(conn)
	var value any
	w.must(conn.QueryRow(w.ctx, query, args...).Scan(&value))
	return fmt.Sprint(value)
}

// status returns the proxy's status now.
func (w *world) status() admin.Status {
	w.t.Helper()
	s, err := w.Status(w.ctx)
	w.must(err)
	return s
}

// await waits until ok is true of the status.
func (w *world) await(what string, ok func(admin.Status) bool) admin.Status {
	w.t.Helper()
	s, err := w.Await(w.ctx, 30*time.Second, what, ok)
	w.must(err)
	return s
}

// awaitPrimary waits until a member is served.
func (w *world) awaitPrimary(member string) admin.Status {
	w.t.Helper()
	return w.await(member+" is served", func(s admin.Status) bool { return s.Served() && s.Primary == member })
}

// isTrue checks that the status is that of the servers: the member is served in
// this epoch, takes writes, and is on the timeline of the record.
func (w *world) isTrue(s admin.Status, member string, epoch int) {
	w.t.Helper()
	if !s.Served() || s.Primary != member || int(s.Epoch) != epoch {
		w.t.Errorf("served %v, primary %s, epoch %d; want %s, epoch %d", s.Served(), s.Primary, s.Epoch, member, epoch)
	}
	got := w.sql(member, "SELECT pg_is_in_recovery(), ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int")
	if want := fmt.Sprintf("f|%d", s.Timeline); got != want {
		w.t.Errorf("%s: in recovery and timeline are %s, the record says %s", member, got, want)
	}
}

// whereAmI is a query that names the member that answers it.
const whereAmI = "SELECT current_setting('cluster_name')"

// bash runs a script in a member's container, with psql of the server's version.
// Its output is of both streams.
func (w *world) bash(member, script string) (string, error) {
	out, err := w.Run(w.ctx, member, script, "bash", "-c", "exec 2>&1; exec bash -s")
	return strings.TrimSpace(out), err
}

// same returns nil if got is what was wanted.
func same(got, wanted string) error {
	if got != wanted {
		return fmt.Errorf("got %q, want %q", got, wanted)
	}
	return nil
}

// closeNow closes without waiting for a server that may hang.
func closeNow(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	conn.Close(ctx)
}

// poll calls f until it returns nil.
func (w *world) poll(f func() error) {
	w.t.Helper()
	limit := time.After(30 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-w.ctx.Done():
			w.t.Fatal(errors.Join(context.Cause(w.ctx), err))
		case <-limit:
			w.t.Fatalf("not within 30 s: %v", err)
		}
	}
}
