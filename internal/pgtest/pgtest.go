// Package pgtest gives tests real PostgreSQL servers, and waits for them.
//
// Every helper registers its own cleanup. When a test has failed, the end of
// each of its servers' logs is printed and the whole of it is kept among the
// test's artifacts (go test -artifacts). Where PostgreSQL is not installed a
// test fails and says what to install: it is never skipped in silence.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"pgfailproxy/internal/pgserver"
)

// limit is the time that any one step of a helper may take. It is generous: it
// is there to end a test that hangs, with a reason.
const limit = 30 * time.Second

var find = sync.OnceValues(pgserver.Find)

// Install returns the PostgreSQL of this machine.
func Install(t testing.TB) pgserver.Install {
	t.Helper()
	in, err := find()
	if err != nil {
		t.Fatalf("this test needs PostgreSQL: %v", err)
	}
	return in
}

// Primary starts a new primary. It does not fsync.
func Primary(t testing.TB, o pgserver.Options) *pgserver.Server {
	t.Helper()
	o.NoSync = true
	if o.Name == "" {
		o.Name = "primary"
	}
	dir := folder(t)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	s, err := Install(t).InitPrimary(ctx, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	begin(ctx, t, s)
	return s
}

// Standby starts a standby of primary and waits until it streams. It does not
// fsync.
func Standby(t testing.TB, primary *pgserver.Server, o pgserver.Options) *pgserver.Server {
	t.Helper()
	o.NoSync = true
	if o.Name == "" {
		o.Name = "standby"
	}
	dir := folder(t)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	s, err := Install(t).CloneStandby(ctx, primary, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	begin(ctx, t, s)
	WaitStreaming(t, s)
	return s
}

// Pair starts a primary and a standby that streams from it.
func Pair(t testing.TB) (primary, standby *pgserver.Server) {
	t.Helper()
	primary = Primary(t, pgserver.Options{})
	return primary, Standby(t, primary, pgserver.Options{})
}

// folder is a temporary folder that another user may be let into: the parents
// of testing's own belong to the user of the test alone. Where there is one it
// is in memory, which makes a standby in a tenth of the time.
func folder(t testing.TB) string {
	t.Helper()
	parent := ""
	var fs unix.Statfs_t
	if err := unix.Statfs(memory, &fs); err == nil && fs.Bavail*uint64(fs.Bsize) > 4<<30 && os.Getenv("TMPDIR") == "" {
		parent = memory
	}
	dir, err := os.MkdirTemp(parent, "pgtest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// memory is Linux's file system in memory. Containers often have a small one.
const memory = "/dev/shm"

// begin registers the end of s and starts it.
func begin(ctx context.Context, t testing.TB, s *pgserver.Server) {
	t.Helper()
	artifacts := t.ArtifactDir() // asked for now, because it must outlive the cleanup
	t.Cleanup(func() {
		if t.Failed() {
			keepLog(t, s, artifacts)
		}
		if err := s.Close(); err != nil {
			t.Errorf("close %s: %v", s.Name(), err)
		}
	})
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
}

func keepLog(t testing.TB, s *pgserver.Server, artifacts string) {
	log := s.Log()
	if n := len(log); n > 4<<10 {
		log = "..." + log[n-4<<10:]
	}
	t.Logf("end of the log of %s (port %d):\n%s", s.Name(), s.Port(), log)
	path := filepath.Join(artifacts, fmt.Sprintf("%s-%d.log", s.Name(), s.Port()))
	if err := os.WriteFile(path, []byte(s.Log()), 0o644); err != nil {
		t.Logf("keep the log: %v", err)
	}
}

// Conn connects to s as its superuser. The connection is closed at the end of
// the test.
func Conn(t testing.TB, s *pgserver.Server) *pgx.Conn {
	t.Helper()
	return ConnAs(t, s, pgserver.Superuser)
}

// ConnAs connects to s as user.
func ConnAs(t testing.TB, s *pgserver.Server, user string) *pgx.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.ConnString(user, "postgres"))
	if err != nil {
		t.Fatalf("connect to %s: %v", s.Name(), err)
	}
	t.Cleanup(func() {
		// A server that hangs or was killed must not hold up the end.
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		conn.Close(ctx)
	})
	return conn
}

// Exec runs SQL on s as its superuser, over a connection of its own. Several
// statements, separated by semicolons, are one transaction.
func Exec(t testing.TB, s *pgserver.Server, sql string) {
	t.Helper()
	if err := withConn(t, s, func(ctx context.Context, c *pgx.Conn) error {
		_, err := c.PgConn().Exec(ctx, sql).ReadAll()
		return err
	}); err != nil {
		t.Fatalf("on %s: %s: %v", s.Name(), sql, err)
	}
}

// Value returns the only column of the only row that sql yields on s.
func Value[T any](t testing.TB, s *pgserver.Server, sql string) T {
	t.Helper()
	v, err := value[T](t, s, sql)
	if err != nil {
		t.Fatalf("on %s: %s: %v", s.Name(), sql, err)
	}
	return v
}

func value[T any](t testing.TB, s *pgserver.Server, sql string) (v T, err error) {
	err = withConn(t, s, func(ctx context.Context, c *pgx.Conn) error {
		return c.QueryRow(ctx, sql).Scan(&v)
	})
	return v, err
}

func withConn(t testing.TB, s *pgserver.Server, do func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	c, err := pgx.Connect(ctx, s.ConnString(pgserver.Superuser, "postgres"))
	if err != nil {
		return err
	}
	return errors.Join(do(ctx, c), c.Close(ctx))
}

// Role creates, on a primary, the role with the least privileges that
// pgfailproxy needs for all it does to members, and can log in with.
func Role(t testing.TB, primary *pgserver.Server, name string) {
	t.Helper()
	r := pgx.Identifier{name}.Sanitize()
	Exec(t, primary, `
		create role `+r+` login;
		grant pg_monitor to `+r+`;
		grant execute on function pg_promote(boolean, integer), pg_reload_conf(), pg_wal_replay_resume() to `+r+`;
		grant alter system on parameter primary_conninfo to `+r)
}

// WaitStreaming waits until the standby's WAL receiver is connected.
func WaitStreaming(t testing.TB, standby *pgserver.Server) {
	t.Helper()
	Until(t, limit, func() error {
		n, err := value[int](t, standby, "select count(*) from pg_stat_wal_receiver where status = 'streaming'")
		if err == nil && n == 0 {
			err = fmt.Errorf("%s does not stream", standby.Name())
		}
		return err
	})
}

// WaitReplayed waits until the standby has replayed all that the primary has
// written by now.
func WaitReplayed(t testing.TB, primary, standby *pgserver.Server) {
	t.Helper()
	lsn := Value[string](t, primary, "select pg_current_wal_insert_lsn()::text")
	Until(t, limit, func() error {
		ok, err := value[bool](t, standby, fmt.Sprintf("select coalesce(pg_last_wal_replay_lsn() >= '%s', false)", lsn))
		if err == nil && !ok {
			err = fmt.Errorf("%s has not replayed %s", standby.Name(), lsn)
		}
		return err
	})
}

// Until calls try again and again until it returns nil, and fails the test with
// its last error if that takes longer than limit.
func Until(t testing.TB, limit time.Duration, try func() error) {
	t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not after %v: %v", limit, err)
		}
	}
}
