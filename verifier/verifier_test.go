package verifier

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pgfailproxy/cluster"
	"pgfailproxy/internal/pgserver"
	"pgfailproxy/internal/pgtest"
)

// proxyRole has a name that has to be quoted.
const proxyRole = `the "proxy"`

// world is a primary with roles of every kind, and a Source for it.
type world struct {
	t      *testing.T
	server *pgserver.Server
	source *Source
	addr   cluster.Addr
	dials  atomic.Int64
}

func newWorld(t *testing.T, statements []string) *world {
	t.Helper()
	w := &world{t: t, server: pgtest.Primary(t, pgserver.Options{})}
	pgtest.Exec(t, w.server, `
		set password_encryption = 'scram-sha-256';
		create role `+Quote(proxyRole)+` login;
		create role app login password 'secret';
		create role forever login password 'secret' valid until 'infinity';
		create role tomorrow login password 'secret' valid until '2999-01-01';
		create role yesterday login password 'secret' valid until '2000-01-01';
		create role nobody nologin password 'secret';
		create role empty login;
		create role boss login superuser password 'secret';
		create role walsender login replication password 'secret';
		set password_encryption = 'md5';
		create role old login password 'secret'`)
	w.install(statements)
	w.addr = cluster.Addr{Network: "tcp", Address: w.server.Addr()}
	// The name is of no host: only the address may be used.
	config, err := pgconn.ParseConfig("host=pg1.invalid dbname=postgres sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	config.User = proxyRole
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		w.dials.Add(1)
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	w.source = New(map[string]*pgconn.Config{"pg1": config})
	t.Cleanup(w.source.Close)
	return w
}

// install runs statements in one transaction.
func (w *world) install(statements []string) {
	w.t.Helper()
	if len(statements) > 0 {
		pgtest.Exec(w.t, w.server, strings.Join(statements, ";\n"))
	}
}

func (w *world) lookup(role string) (string, error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	return w.source.Lookup(ctx, "pg1", w.addr, role)
}

// is checks what role's verifier is: one of SCRAM, or the text.
func (w *world) is(role, want string) {
	w.t.Helper()
	got, err := w.lookup(role)
	if err != nil {
		w.t.Fatalf("%s: %v", role, err)
	}
	if want == "SCRAM" {
		want = pgtest.Value[string](w.t, w.server, "select rolpassword from pg_authid where rolname = '"+role+"'")
	}
	if got != want {
		w.t.Errorf("%s: %q, want %q", role, got, want)
	}
}

func TestWhoMayLogInHasAVerifierAndNobodyElse(t *testing.T) {
	w := newWorld(t, Statements(proxyRole, false))
	w.is("app", "SCRAM")
	w.is("forever", "SCRAM")
	w.is("tomorrow", "SCRAM")
	w.is("yesterday", "")
	w.is("nobody", "")
	w.is("empty", "")
	w.is("boss", "")
	w.is("walsender", "")
	w.is("old", "not stored as scram-sha-256") // an md5 hash is as good as the password
	for _, stranger := range []string{"none", "", "App", "app ", "app'; drop table x; --", `"app"`, strings.Repeat("a", 100), "a\x00b", "\xff", "größe", "\U0001F600"} {
		w.is(stranger, "")
	}
	if n := w.dials.Load(); n != 1 {
		t.Errorf("%d connections for one question after the other", n)
	}
}

// Names are cut after 63 bytes elsewhere in PostgreSQL: here one that goes on
// after that is another.
func TestALongNameIsNotTakenForAShorterOne(t *testing.T) {
	w := newWorld(t, Statements(proxyRole, false))
	long := strings.Repeat("x", 63)
	pgtest.Exec(t, w.server, "create role "+long+" login password 'secret'")
	w.is(long, "SCRAM")
	w.is(long+"y", "")
}

func TestSuperusersHaveAVerifierOnlyWhereThatIsWanted(t *testing.T) {
	w := newWorld(t, Statements(proxyRole, true))
	w.is("boss", "SCRAM")
	w.is("walsender", "SCRAM")
	w.is("yesterday", "")
	w.install(Statements(proxyRole, false)) // again, and otherwise
	w.is("boss", "")
	w.is("app", "SCRAM")
}

func TestTheStatementsMayBeRunAgainAndForSeveralProxies(t *testing.T) {
	w := newWorld(t, Statements(proxyRole, false))
	w.install(Statements("empty", false))
	w.install(Statements(proxyRole, false))
	w.is("app", "SCRAM")
	asOther := pgtest.ConnAs(t, w.server, "empty")
	var text string
	if err := asOther.QueryRow(t.Context(), "select pgfailproxy.verifier('app')").Scan(&text); err != nil || !strings.HasPrefix(text, "SCRAM-SHA-256$") {
		t.Errorf("the other proxy's role: %q, %v", text, err)
	}
}

func TestAChangedPasswordCountsAtOnce(t *testing.T) {
	w := newWorld(t, Statements(proxyRole, false))
	w.is("app", "SCRAM")
	pgtest.Exec(t, w.server, "set password_encryption = 'scram-sha-256'; alter role app password 'another'")
	w.is("app", "SCRAM")
	pgtest.Exec(t, w.server, "alter role app nologin")
	w.is("app", "")
}

func TestOthersMayNeitherCallTheFunctionNorReadTheTable(t *testing.T) {
	w := newWorld(t, Statements(proxyRole, false))
	for role, statements := range map[string][]string{
		"app":     {"select pgfailproxy.verifier('forever')", "select rolpassword from pg_authid", "create function pgfailproxy.f() returns int language sql as 'select 1'"},
		proxyRole: {"select rolpassword from pg_authid", "create function pgfailproxy.f() returns int language sql as 'select 1'", "alter function pgfailproxy.verifier(text) reset all"},
	} {
		config, err := pgx.ParseConfig(w.server.ConnString("app", "postgres"))
		if err != nil {
			t.Fatal(err)
		}
		config.User = role
		conn, err := pgx.ConnectConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		for _, sql := range statements {
			_, err := conn.Exec(t.Context(), sql)
			if state(err) != "42501" {
				t.Errorf("%s: %s: %v", role, sql, err)
			}
		}
	}
}

// Whoever may call the function chooses the search_path, temporary objects and
// operators that are around it.
func TestNothingAroundTheFunctionChangesWhatItDoes(t *testing.T) {
	w := newWorld(t, Statements(proxyRole, false))
	pgtest.Exec(t, w.server, "grant create, temporary on database postgres to "+Quote(proxyRole))
	config, err := pgx.ParseConfig(w.server.ConnString("app", "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	config.User = proxyRole
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	const hostile = `
		create schema evil;
		create function evil.yes(name, text) returns bool language sql as 'select true';
		create function evil.yes(timestamptz, timestamptz) returns bool language sql as 'select true';
		create operator evil.= (leftarg = name, rightarg = text, function = evil.yes);
		create operator evil.> (leftarg = timestamptz, rightarg = timestamptz, function = evil.yes);
		create function evil.starts_with(text, text) returns bool language sql as 'select true';
		create function evil.now() returns timestamptz language sql as $$ select '1999-01-01'::timestamptz $$;
		create domain evil.text as pg_catalog.text check (value is null);
		create temporary table pg_authid (rolname name, rolpassword text, rolcanlogin bool, rolsuper bool, rolreplication bool, rolvaliduntil timestamptz);
		insert into pg_temp.pg_authid values ('none', 'SCRAM-SHA-256$evil', true, false, false, null);
		set search_path = evil, pg_temp, pg_catalog`
	if _, err := conn.PgConn().Exec(t.Context(), hostile).ReadAll(); err != nil {
		t.Fatal(err)
	}
	for role, want := range map[string]bool{"app": true, "none": false, "yesterday": false, "boss": false, "old": true} {
		var got *string
		if err := conn.QueryRow(t.Context(), "select pgfailproxy.verifier($1::pg_catalog.text)", pgx.QueryExecModeExec, role).Scan(&got); err != nil {
			t.Fatal(err)
		}
		switch {
		case (got != nil) != want:
			t.Errorf("%s: %v", role, got)
		case got != nil && (strings.Contains(*got, "evil") || strings.HasPrefix(*got, "md5")):
			t.Errorf("%s: %s", role, *got)
		}
	}
}

func TestASchemaOfSomebodyElseIsRefused(t *testing.T) {
	w := newWorld(t, nil)
	pgtest.Exec(t, w.server, "create schema pgfailproxy authorization app")
	conn := pgtest.Conn(t, w.server)
	_, err := conn.PgConn().Exec(t.Context(), strings.Join(Statements(proxyRole, false), ";\n")).ReadAll()
	if err == nil || !strings.Contains(err.Error(), "belongs to a role that is no superuser") {
		t.Errorf("%v", err)
	}
	pgtest.Exec(t, w.server, "alter schema pgfailproxy owner to current_user; create function pgfailproxy.verifier(role text) returns text language sql as $$ select 'SCRAM-SHA-256$evil' $$; alter function pgfailproxy.verifier(text) owner to app")
	w.install(Statements(proxyRole, false))
	w.is("app", "SCRAM")
	if owner := pgtest.Value[string](t, w.server, "select proowner::regrole::text from pg_proc where proname = 'verifier'"); owner != pgserver.Superuser {
		t.Errorf("the function belongs to %s", owner)
	}
}

func TestWithoutTheFunctionSetupIsNamed(t *testing.T) {
	w := newWorld(t, nil)
	for _, prepare := range []string{
		"select 1",                  // no schema
		"create schema pgfailproxy", // not granted
		"grant usage on schema pgfailproxy to " + Quote(proxyRole), // no function
	} {
		pgtest.Exec(t, w.server, prepare)
		if _, err := w.lookup("app"); !errors.Is(err, ErrNotInstalled) || !strings.Contains(err.Error(), "pgfailproxy setup") {
			t.Errorf("%s: %v", prepare, err)
		}
	}
	w.install(Statements(proxyRole, false))
	w.is("app", "SCRAM")
	pgtest.Exec(t, w.server, "revoke execute on function pgfailproxy.verifier(text) from "+Quote(proxyRole))
	if _, err := w.lookup("app"); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("revoked: %v", err)
	}
}

func TestAKeptConnectionThatBreaksIsNotNoticed(t *testing.T) {
	w := newWorld(t, Statements(proxyRole, false))
	for range 2 {
		w.is("app", "SCRAM")
		pgtest.Exec(t, w.server, "select pg_terminate_backend(pid) from pg_stat_activity where usename = '"+proxyRole+"'")
	}
	w.is("app", "SCRAM")
	if err := w.server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.is("app", "SCRAM")
}

func TestACrowdSharesAFewConnections(t *testing.T) {
	w := newWorld(t, Statements(proxyRole, false))
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			for range 5 {
				role, want := "app", true
				if i%2 == 1 {
					role, want = "none", false
				}
				if text, err := w.lookup(role); err != nil || (text != "") != want {
					t.Errorf("%s: %q, %v", role, text, err)
				}
			}
		})
	}
	wg.Wait()
	if n := w.dials.Load(); n > maxConns {
		t.Errorf("%d connections, want at most %d", n, maxConns)
	}
	w.source.Close()
	pgtest.Until(t, 10*time.Second, func() error {
		if n := pgtest.Value[int](t, w.server, "select count(*) from pg_stat_activity where usename = '"+proxyRole+"'"); n > 0 {
			return fmt.Errorf("%d connections are open after Close", n)
		}
		return nil
	})
	if _, err := w.lookup("app"); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// silent is a server that accepts and says nothing.
func silent(t *testing.T) cluster.Addr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return cluster.Addr{Network: "tcp", Address: l.Addr().String()}
}

func quiet(t *testing.T) *Source {
	t.Helper()
	config, err := pgconn.ParseConfig("host=pg1.invalid user=u sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	return New(map[string]*pgconn.Config{"pg1": config})
}

func TestAServerThatHangsIsWaitedForOnlyAsLongAsItsCallerLikes(t *testing.T) {
	s, addr := quiet(t), silent(t)
	defer s.Close()
	why := errors.New("the route has ended")
	ctx, cancel := context.WithCancelCause(t.Context())
	var wg sync.WaitGroup
	for range 2 * maxConns { // some wait for the server, some for their turn
		wg.Go(func() {
			if _, err := s.Lookup(ctx, "pg1", addr, "app"); !errors.Is(err, why) {
				t.Errorf("%v", err)
			}
		})
	}
	pgtest.Until(t, 10*time.Second, func() error {
		if n := len(s.members["pg1"].slots); n < maxConns {
			return fmt.Errorf("%d are under way", n)
		}
		return nil
	})
	cancel(why)
	wg.Wait()
}

func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	s, addr := quiet(t), silent(t)
	failed := make(chan error, 1)
	go func() {
		_, err := s.Lookup(t.Context(), "pg1", addr, "app")
		failed <- err
	}()
	pgtest.Until(t, 10*time.Second, func() error {
		if len(s.members["pg1"].slots) == 0 {
			return errors.New("nothing is under way")
		}
		return nil
	})
	s.Close()
	if err := <-failed; !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
}

func TestAMemberThatMovedIsAskedWhereItIsNow(t *testing.T) {
	w := newWorld(t, Statements(proxyRole, false))
	w.is("app", "SCRAM")
	there := w.addr
	w.addr.Address = "127.0.0.1:1"
	if _, err := w.lookup("app"); err == nil {
		t.Error("a kept connection to the old address was used")
	}
	w.addr = there
	w.is("app", "SCRAM")
	if _, err := w.source.Lookup(t.Context(), "pg2", w.addr, "app"); err == nil || !strings.Contains(err.Error(), `no member "pg2"`) {
		t.Errorf("%v", err)
	}
}
