package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pgfailproxy/admin"
	"pgfailproxy/config"
	"pgfailproxy/internal/pgserver"
	"pgfailproxy/internal/pgtest"
)

// running is a proxy in this process, before real servers.
type running struct {
	t    *testing.T
	i    *instance
	log  *lockedBuffer
	stop func()
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs a proxy for members, in that order, with the record in dir.
func start(t *testing.T, dir string, members []*pgserver.Server, more ...string) *running {
	t.Helper()
	fs := flags("run", runUse, streams{io.Discard, io.Discard})
	src := config.Flags(fs)
	args := []string{"--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--record", filepath.Join(dir, "record")}
	for _, m := range members {
		args = append(args, "--member", m.Name()+"="+m.ConnString("postgres", "postgres"))
	}
	if err := fs.Parse(append(args, more...)); err != nil {
		t.Fatal(err)
	}
	cfg, err := src.Load(nil)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{t: t, log: &lockedBuffer{}}
	if r.i, err = newInstance(cfg, newLogger(r.log, "text", slog.LevelDebug)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.i.run(ctx, ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() {
		r.stop()
		if t.Failed() {
			t.Logf("the proxy's log:\n%s", r.log)
		}
	})
	return r
}

// connect connects through the port.
func (r *running) connect() *pgx.Conn {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 40*time.Second)
	defer cancel()
	c, err := pgx.Connect(ctx, fmt.Sprintf("postgres://postgres@%s/postgres?sslmode=disable", r.i.clients.Addr()))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

// where returns the port of the server that the next connection reaches, after a
// write there.
func (r *running) where() int {
	r.t.Helper()
	c := r.connect()
	defer c.Close(context.Background())
	var port int
	if _, err := c.Exec(r.t.Context(), "create table if not exists t (i int)"); err != nil {
		r.t.Fatal(err)
	}
	if _, err := c.Exec(r.t.Context(), "insert into t values (1)"); err != nil {
		r.t.Fatal(err)
	}
	if err := c.QueryRow(r.t.Context(), "select inet_server_port()").Scan(&port); err != nil {
		r.t.Fatal(err)
	}
	return port
}

func pair(t *testing.T) (one, two *pgserver.Server) {
	t.Helper()
	fast := map[string]string{"wal_retrieve_retry_interval": "100ms"}
	one = pgtest.Primary(t, pgserver.Options{Name: "pg1", Settings: fast})
	two = pgtest.Standby(t, one, pgserver.Options{Name: "pg2", Settings: fast})
	return one, two
}

func (r *running) get(path string) (int, string) {
	r.t.Helper()
	resp, err := http.Get("http://" + r.i.http.Addr().String() + path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// The main job, and what must not follow from it: the old primary comes back
// writable, is listed first, the proxy is started again, and it gets no byte.
func TestTheOldPrimaryGetsNoByteAfterAFailover(t *testing.T) {
	one, two := pair(t)
	dir := t.TempDir()
	r := start(t, dir, []*pgserver.Server{one, two})
	if got := r.where(); got != one.Port() {
		t.Fatalf("served by port %d, want %d", got, one.Port())
	}
	session := r.connect()
	if err := one.Kill(); err != nil {
		t.Fatal(err)
	}
	if got := r.where(); got != two.Port() {
		t.Fatalf("after the failover served by port %d, want %d", got, two.Port())
	}
	if _, err := session.Exec(t.Context(), "select 1"); err == nil {
		t.Error("a session on the old primary goes on")
	}
	if err := one.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	served := func(r *running) {
		t.Helper()
		pgtest.Until(t, 20*time.Second, func() error { // pg1 was seen, and seen to be writable
			for _, m := range r.i.status().Members {
				if m.Name == "pg1" && m.Role != "primary" {
					return fmt.Errorf("pg1 is %s, %s", m.Role, m.Error)
				}
			}
			return nil
		})
		for range 20 {
			if got := r.where(); got != two.Port() {
				t.Fatalf("served by port %d, want %d", got, two.Port())
			}
		}
		if n := pgtest.Value[int64](t, one, "select count(*) from pg_stat_activity where backend_type = 'client backend' and application_name <> 'pgfailproxy' and pid <> pg_backend_pid()"); n != 0 {
			t.Errorf("%d sessions on the old primary", n)
		}
	}
	served(r)
	if code, _ := r.get("/primary/pg1"); code != http.StatusServiceUnavailable {
		t.Errorf("/primary/pg1: %d", code)
	}
	if code, _ := r.get("/primary/pg2"); code != http.StatusOK {
		t.Errorf("/primary/pg2: %d", code)
	}
	r.stop()
	served(start(t, dir, []*pgserver.Server{one, two}))
}

// A frozen primary that comes back after the failover is as harmless.
func TestAHangingPrimaryIsReplacedAndItsSessionsEnd(t *testing.T) {
	one, two := pair(t)
	r := start(t, t.TempDir(), []*pgserver.Server{one, two})
	session := r.connect()
	if err := one.Pause(); err != nil {
		t.Fatal(err)
	}
	defer one.Resume()
	if got := r.where(); got != two.Port() {
		t.Fatalf("served by port %d, want %d", got, two.Port())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := session.Exec(ctx, "select 1"); err == nil || ctx.Err() != nil {
		t.Errorf("a session on the frozen primary was not ended: %v", err)
	}
	one.Resume()
	if got := r.where(); got != two.Port() {
		t.Fatalf("served by port %d, want %d", got, two.Port())
	}
}

// A restart of the primary is a pause for those who connect, and no failover.
func TestARestartOfThePrimaryIsNoFailover(t *testing.T) {
	one, two := pair(t)
	// More patience than a restart takes, however slow the machine.
	r := start(t, t.TempDir(), []*pgserver.Server{one, two}, "--threshold", "100", "--hold-timeout", "200s")
	r.where()
	if err := one.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := r.where(); got != one.Port() {
		t.Fatalf("served by port %d, want %d", got, one.Port())
	}
	if s := r.i.status(); s.Epoch != 1 || len(s.Failovers) != 0 {
		t.Errorf("epoch %d, %d failovers", s.Epoch, len(s.Failovers))
	}
}

// A smart shutdown refuses new sessions and waits for the old ones. New clients
// are served elsewhere, and nothing of ours keeps the server from ending.
func TestASmartShutdownIsAFailover(t *testing.T) {
	one, two := pair(t)
	r := start(t, t.TempDir(), []*pgserver.Server{one, two})
	session := r.connect()
	stopped := make(chan error, 1)
	go func() { stopped <- one.Stop(t.Context(), pgserver.Smart) }()
	pgtest.Until(t, 20*time.Second, func() error {
		c, err := pgx.Connect(t.Context(), one.ConnString("postgres", "postgres"))
		if err == nil {
			c.Close(context.Background())
			return errors.New("it takes new sessions")
		}
		return nil
	})
	if got := r.where(); got != two.Port() {
		t.Fatalf("served by port %d, want %d", got, two.Port())
	}
	session.Close(context.Background())
	if err := <-stopped; err != nil {
		t.Errorf("the old primary does not end: %v", err)
	}
}

func TestTwoWritableMembersAreRefusedAndNamed(t *testing.T) {
	one := pgtest.Primary(t, pgserver.Options{Name: "pg1"})
	two := pgtest.Standby(t, one, pgserver.Options{Name: "pg2"})
	pgtest.Exec(t, two, "select pg_promote()")
	r := start(t, t.TempDir(), []*pgserver.Server{one, two})
	pgtest.Until(t, 20*time.Second, func() error {
		if s := r.i.status(); s.State != "halted" || !strings.Contains(s.Reason, "pg1 and pg2 are both writable") {
			return fmt.Errorf("%s: %s", s.State, s.Reason)
		}
		return nil
	})
	if code, body := r.get("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "both writable") {
		t.Errorf("/readyz: %d %s", code, body)
	}
}

// Passwords are in the connection strings of every user who has no .pgpass.
func TestSecretsAreShownNowhere(t *testing.T) {
	const secret = "hunter2-topsecret"
	one := pgtest.Primary(t, pgserver.Options{Name: "pg1", Password: secret})
	two := pgtest.Standby(t, one, pgserver.Options{Name: "pg2"})
	dir := t.TempDir()
	r := start(t, dir, []*pgserver.Server{one, two}, "--fence-command", "true # "+secret)
	if !strings.Contains(one.ConnString("postgres", "postgres"), secret) {
		t.Fatal("the connection string holds no password: this test shows nothing")
	}
	wait := func(primary string) {
		pgtest.Until(t, 30*time.Second, func() error {
			if s := r.i.status(); !s.Served() || s.Primary != primary {
				return fmt.Errorf("%s, %s", s.State, s.Reason)
			}
			return nil
		})
	}
	wait("pg1")
	if err := one.Kill(); err != nil {
		t.Fatal(err)
	}
	wait("pg2")
	shown := map[string]string{"log": r.log.String()}
	for _, path := range []string{"/", "/status", "/metrics"} {
		_, shown[path] = r.get(path)
	}
	var out bytes.Buffer
	err := statusCommand(t.Context(), []string{"--admin", r.i.http.Addr().String()}, streams{&out, &out})
	shown["status"] = fmt.Sprint(out.String(), err)
	out.Reset()
	err = checkCommand(t.Context(), []string{"--record", filepath.Join(dir, "record"),
		"--member", "pg1=" + one.ConnString("postgres", "postgres"), "--member", "pg2=" + two.ConnString("postgres", "postgres")}, streams{&out, &out})
	shown["check"] = fmt.Sprint(out.String(), err)
	for where, text := range shown {
		if len(text) < 40 {
			t.Errorf("%s shows nothing: %q", where, text)
		}
		if strings.Contains(text, secret) {
			t.Errorf("%s shows the password", where)
		}
	}
}

func TestStatusIsForPeopleAndPrograms(t *testing.T) {
	one, two := pair(t)
	r := start(t, t.TempDir(), []*pgserver.Server{one, two})
	r.where()
	at := r.i.http.Addr().String()
	out, _, err := call("status", "--admin", at)
	if err != nil || !strings.Contains(out, "serving pg1") {
		t.Errorf("%v\n%s", err, out)
	}
	s, err := admin.Fetch(t.Context(), at)
	if err != nil || s.Primary != "pg1" || s.Detection.CrashSeconds != 0.2 || s.Detection.HangSeconds != 4 {
		t.Errorf("%v %+v", err, s)
	}
	if err := one.Stop(t.Context(), pgserver.Immediate); err != nil {
		t.Fatal(err)
	}
	if err := two.Kill(); err != nil {
		t.Fatal(err)
	}
	pgtest.Until(t, 20*time.Second, func() error {
		_, _, err := call("status", "--admin", at)
		if !errors.Is(err, exitNotServed) {
			return fmt.Errorf("status returned %v", err)
		}
		return nil
	})
	pgtest.Until(t, 20*time.Second, func() error {
		if s := r.i.status(); s.State != "halted" || !strings.Contains(s.Reason, "no standby can take over") {
			return fmt.Errorf("%s: %s", s.State, s.Reason)
		}
		return nil
	})
}

func TestCheckSaysWhatIsWrongAndHowToMendIt(t *testing.T) {
	one, two := pair(t)
	dir := t.TempDir()
	check := func(user string, more ...string) (string, error) {
		args := []string{"check", "--record", filepath.Join(dir, "record")}
		for _, s := range []*pgserver.Server{one, two} {
			args = append(args, "--member", s.Name()+"="+s.ConnString(user, "postgres"))
		}
		out, _, err := call(append(args, more...)...)
		return out, err
	}
	out, err := check("postgres")
	if err != nil || !strings.Contains(out, "all well") || !strings.Contains(out, "declared 200ms after") || !strings.Contains(out, "within 4s") {
		t.Errorf("%v\n%s", err, out)
	}
	pgtest.Exec(t, one, "create role poor login")
	pgtest.WaitReplayed(t, one, two)
	out, err = check("poor")
	for _, want := range []string{
		"GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer) TO poor", "GRANT pg_monitor TO poor",
		"GRANT ALTER SYSTEM ON PARAMETER primary_conninfo TO poor",
	} {
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("does not say %q: %v\n%s", want, err, out)
		}
	}
	pgtest.Role(t, one, "rich")
	pgtest.WaitReplayed(t, one, two)
	if out, err := check("rich"); err != nil {
		t.Errorf("the documented grants are not enough: %v\n%s", err, out)
	}
	if out, err := check("nobody_here"); err == nil || !strings.Contains(out, "mend the connection string") {
		t.Errorf("%v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "record"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := two.Kill(); err != nil {
		t.Fatal(err)
	}
	out, err = check("postgres")
	for _, want := range []string{"truncated", "it does not answer: connection refused", "no standby to fail over to"} {
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("does not say %q: %v\n%s", want, err, out)
		}
	}
}

// A second proxy on the same record would be a second decider.
func TestASecondProxyOnTheSameRecordIsRefused(t *testing.T) {
	one := pgtest.Primary(t, pgserver.Options{Name: "pg1"})
	dir := t.TempDir()
	start(t, dir, []*pgserver.Server{one})
	_, _, err := call("run", "--listen", "127.0.0.1:0", "--admin", "", "--record", filepath.Join(dir, "record"), "--member", "pg1="+one.ConnString("postgres", "postgres"))
	if err == nil || !strings.Contains(err.Error(), "in use by another pgfailproxy") {
		t.Errorf("%v", err)
	}
}

func TestAPortThatIsTakenIsNamed(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, _, err = call("run", "--listen", ln.Addr().String(), "--record", filepath.Join(t.TempDir(), "record"), "--member", "pg1=host=127.0.0.1 user=u")
	if err == nil || !strings.Contains(err.Error(), "--listen") || !strings.Contains(err.Error(), ln.Addr().String()) {
		t.Errorf("%v", err)
	}
}

// SIGTERM lets sessions finish; a second one does not.
func TestSignals(t *testing.T) {
	one := pgtest.Primary(t, pgserver.Options{Name: "pg1"})
	for _, twice := range []bool{false, true} {
		t.Run(fmt.Sprintf("twice %v", twice), func(t *testing.T) {
			port := freePort(t)
			var log lockedBuffer
			done := make(chan error, 1)
			go func() {
				done <- run(context.Background(), []string{"run", "--listen", port, "--admin", "", "--record", filepath.Join(t.TempDir(), "record"),
					"--log-format", "text", "--member", "pg1=" + one.ConnString("postgres", "postgres")}, io.Discard, &log)
			}()
			var session *pgx.Conn
			pgtest.Until(t, 20*time.Second, func() (err error) {
				session, err = pgx.Connect(t.Context(), "postgres://postgres@"+port+"/postgres?sslmode=disable")
				return err
			})
			defer session.Close(context.Background())
			syscall.Kill(os.Getpid(), syscall.SIGTERM)
			pgtest.Until(t, 20*time.Second, func() error {
				if !strings.Contains(log.String(), "shutting down") {
					return errors.New("the log does not say so")
				}
				return nil
			})
			if _, err := session.Exec(t.Context(), "select 1"); err != nil {
				t.Errorf("the session was ended: %v", err)
			}
			if twice {
				syscall.Kill(os.Getpid(), syscall.SIGTERM)
			} else {
				session.Close(context.Background())
			}
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("run: %v", err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("still running")
			}
			if _, err := session.Exec(t.Context(), "select 1"); err == nil {
				t.Error("the session goes on")
			}
		})
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// The demo is run as a user runs it.
func TestDemo(t *testing.T) {
	pgtest.Install(t)
	out, errs, err := call("demo", "--writing", "500ms")
	t.Log(out)
	if err != nil || !strings.Contains(out, "proof: pg2 has every one of the") {
		t.Errorf("%v %s", err, errs)
	}
}

// A login is bound to the certificate that the client sees.
func TestTLSOnBothSidesWithOtherCertificatesIsRefusedUnlessTheProxyChecksPasswords(t *testing.T) {
	s := pgtest.Primary(t, pgserver.Options{})
	cert := pgtest.Certificate(t)
	pgtest.EnableTLS(t, s, cert)
	theirs, ours := cert.Leaf, pgtest.Certificate(t).Leaf
	encrypted := strings.Replace(s.ConnString("postgres", "postgres"), "sslmode=disable", "sslmode=require", 1)
	check := func(conn, auth string, leaf *x509.Certificate) error {
		t.Helper()
		fs := flags("run", runUse, streams{io.Discard, io.Discard})
		src := config.Flags(fs)
		if err := fs.Parse([]string{"--member", "pg1=" + conn}); err != nil {
			t.Fatal(err)
		}
		cfg, err := src.Load(nil)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Auth = auth
		return checkCertificates(t.Context(), cfg, leaf)
	}
	if err := check(encrypted, config.Relay, ours); err == nil || !strings.Contains(err.Error(), "set auth: terminate, or sslmode=disable") {
		t.Errorf("another certificate: %v", err)
	}
	for name, err := range map[string]error{
		"the same certificate":  check(encrypted, config.Relay, theirs),
		"no TLS to the server":  check(s.ConnString("postgres", "postgres"), config.Relay, ours),
		"passwords checked":     check(encrypted, config.Terminate, ours),
		"nobody at the address": check("host=127.0.0.1 port=1 user=postgres sslmode=require", config.Relay, ours),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
