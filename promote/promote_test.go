package promote_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pgfailproxy/cluster"
	"pgfailproxy/internal/pgserver"
	"pgfailproxy/internal/pgtest"
	"pgfailproxy/promote"
)

const (
	role  = "pgfp"
	limit = 20 * time.Second // of a step; only a test that fails waits so long
)

// scene is a primary, a standby that streams from it, and a Promoter that knows
// the standby as "standby" and has no more than the privileges it needs.
type scene struct {
	*testing.T
	primary, standby *pgserver.Server
	p                *promote.Promoter
	rec              cluster.Record
	log              *logBuffer
}

func newScene(t *testing.T) *scene {
	t.Parallel()
	s := &scene{T: t, log: new(logBuffer)}
	s.primary, s.standby = pgtest.Pair(t)
	pgtest.Role(t, s.primary, role)
	pgtest.Exec(t, s.primary, "create table t (n bigint primary key)")
	pgtest.WaitReplayed(t, s.primary, s.standby)
	s.rec = record(t, s.primary)
	s.p = s.promoter(role, promote.Options{})
	return s
}

// record is the Record that has server as its primary.
func record(t *testing.T, server *pgserver.Server) cluster.Record {
	t.Helper()
	return cluster.Record{
		Revision: 1, Epoch: 1, Primary: server.Name(),
		System:   cluster.SystemID(pgtest.Value[int64](t, server, "select system_identifier from pg_control_system()")),
		Timeline: cluster.TimelineID(pgtest.Value[int](t, server, "select ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int")),
	}
}

func (s *scene) promoter(user string, o promote.Options) *promote.Promoter {
	s.Helper()
	config, err := pgconn.ParseConfig(s.standby.ConnString(user, "postgres"))
	if err != nil {
		s.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	p := promote.New(map[string]*pgconn.Config{"standby": config}, o, log)
	s.Cleanup(p.Close)
	return p
}

// within is a context for one step.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func (s *scene) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// takeOver takes all steps of a failover and returns what was verified.
func (s *scene) takeOver() cluster.Observation {
	s.Helper()
	ctx := within(s.T, limit)
	s.ok(s.p.Fence(ctx, "standby"))
	_, err := s.p.Drain(ctx, "standby")
	s.ok(err)
	s.ok(s.p.Promote(ctx, "standby"))
	o, err := s.p.Verify(ctx, "standby", s.rec)
	s.ok(err)
	return o
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestTheStandbyOfAKilledPrimaryTakesOver(t *testing.T) {
	s := newScene(t)
	s.ok(s.primary.Kill())
	began := time.Now()
	o := s.takeOver()
	t.Logf("fence, drain, promote and verify took %v", time.Since(began))
	if o.Role != cluster.RolePrimary || o.System != s.rec.System || o.Position.Timeline != s.rec.Timeline+1 || o.Position.LSN == 0 {
		t.Errorf("verified %+v", o)
	}
	if want := (cluster.Addr{Network: "tcp", Address: s.standby.Addr()}); o.Addr != want {
		t.Errorf("address is %v, want %v", o.Addr, want)
	}
	if o.Reach != cluster.ReachAnswered || o.ServerVersion < 150000 || o.Asked.IsZero() || o.Member != "standby" {
		t.Errorf("verified %+v", o)
	}
	pgtest.Exec(t, s.standby, "insert into t values (1)")

	// All again: the steps of a failover may be repeated.
	if again := s.takeOver(); again.Position.Timeline != o.Position.Timeline {
		t.Errorf("the second time it is on timeline %d", again.Position.Timeline)
	}
}

// The trap: pg_promote, called while the WAL receiver is just ending, may be
// overlooked for wal_retrieve_retry_interval, 5 s.
func TestPromotionInTheMomentOfDeathDoesNotWaitForARetry(t *testing.T) {
	s := newScene(t)
	for _, busy := range []bool{false, true} {
		t.Run(fmt.Sprintf("busy=%v", busy), func(t *testing.T) {
			var took []time.Duration
			for range 5 {
				var stop func()
				if busy {
					stop = flood(t, s.primary)
				}
				s.ok(s.primary.Kill())
				began := time.Now()
				s.ok(s.p.Promote(within(t, limit), "standby"))
				d := time.Since(began)
				if d > 4*time.Second {
					t.Errorf("promotion took %v", d)
				}
				took = append(took, d)
				if busy {
					stop()
				}
				s.next()
			}
			slices.Sort(took)
			t.Logf("promotion took %v, median %v", took, took[len(took)/2])
		})
	}
}

// next makes the promoted standby the primary of a new one.
func (s *scene) next() {
	s.primary.Close()
	s.primary = s.standby
	s.standby = pgtest.Standby(s.T, s.primary, pgserver.Options{})
	s.rec = record(s.T, s.primary)
	s.p = s.promoter(role, promote.Options{})
}

// flood writes long WAL records until the server dies or stop is called; stop
// waits for that.
func flood(t *testing.T, server *pgserver.Server) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	conn := pgtest.Conn(t, server)
	var wg sync.WaitGroup
	started := make(chan struct{})
	wg.Go(func() {
		for n := 0; ; n++ {
			if _, err := conn.Exec(ctx, "select pg_logical_emit_message(false, 'flood', repeat('x', 3000000))"); err != nil {
				return
			}
			if n == 3 {
				close(started)
			}
		}
	})
	<-started
	return func() { cancel(); wg.Wait() }
}

// A crash cuts the WAL stream anywhere, mostly within one of these records, so
// that the replay never reaches the end of what was received.
func TestDrainEndsThoughTheWALEndsWithinARecord(t *testing.T) {
	s := newScene(t)
	cut := 0
	for range 4 {
		stop := flood(t, s.primary)
		s.ok(s.primary.Kill())
		stop()
		s.ok(s.p.Fence(within(t, limit), "standby"))
		pos, err := s.p.Drain(within(t, limit), "standby")
		s.ok(err)
		received, err := cluster.ParseLSN(pgtest.Value[string](t, s.standby, "select pg_last_wal_receive_lsn()::text"))
		s.ok(err)
		if pos.LSN < received {
			cut++
		}
		s.ok(s.p.Promote(within(t, limit), "standby"))
		s.next()
	}
	t.Logf("%d of 4 times the WAL ended within a record", cut)
}

func TestAPrimaryThatIsStoppedHasSentEveryAcknowledgedRow(t *testing.T) {
	s := newScene(t)
	acked := make(chan int64, 1<<20)
	dying := make(chan struct{}, 8)
	var writers sync.WaitGroup
	for w := range int64(4) {
		conn := pgtest.Conn(t, s.primary)
		writers.Go(func() {
			defer func() { dying <- struct{}{} }()
			for n := w; ; n += 4 {
				if _, err := conn.Exec(t.Context(), "insert into t values ($1)", n); err != nil {
					return
				}
				acked <- n
			}
		})
	}
	pgtest.Until(t, limit, func() error {
		if n := len(acked); n < 200 {
			return fmt.Errorf("only %d rows written", n)
		}
		return nil
	})
	stopped := make(chan error, 1)
	go func() { stopped <- s.primary.Stop(t.Context(), pgserver.Fast) }()
	<-dying // a proxy notices the stop no sooner than its clients
	s.ok(s.p.Fence(within(t, limit), "standby"))
	if _, err := s.p.Drain(within(t, limit), "standby"); err != nil {
		t.Fatal(err)
	}
	writers.Wait()
	s.ok(<-stopped)
	s.ok(s.p.Promote(within(t, limit), "standby"))
	close(acked)
	rows, err := pgtest.Conn(t, s.standby).Query(t.Context(), "select n from t")
	s.ok(err)
	there, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	s.ok(err)
	slices.Sort(there)
	for n := range acked {
		if _, ok := slices.BinarySearch(there, n); !ok {
			t.Errorf("row %d was acknowledged and is missing", n)
		}
	}
}

func TestAFencedStandbyHearsNothingUntilItIsUnfenced(t *testing.T) {
	s := newScene(t)
	stop := flood(t, s.primary)
	defer stop()
	p := s.promoter(role, promote.Options{Settle: time.Hour, MaxSettle: 300 * time.Millisecond}) // it never settles
	s.ok(p.Fence(within(t, limit), "standby"))
	if !strings.Contains(s.log.String(), "its primary is alive") {
		t.Errorf("not a word of a primary that goes on sending: %s", s.log)
	}
	stop()
	fenced, err := p.Drain(within(t, limit), "standby")
	s.ok(err)
	pgtest.Exec(t, s.primary, "insert into t values (7)")
	s.ok(p.Fence(within(t, limit), "standby")) // again, and it remembers the first value
	if again, err := p.Drain(within(t, limit), "standby"); err != nil || again != fenced {
		t.Errorf("fenced at %v, now at %v (%v)", fenced, again, err)
	}
	s.ok(p.Unfence(within(t, limit), "standby"))
	pgtest.WaitStreaming(t, s.standby)
	pgtest.WaitReplayed(t, s.primary, s.standby)
	if n := pgtest.Value[int](t, s.standby, "select count(*) from t"); n != 1 {
		t.Errorf("%d rows", n)
	}
	s.ok(p.Unfence(within(t, limit), "standby")) // nothing is taken: nothing to do

	// And once more at once, though the server has just been told otherwise.
	s.ok(p.Fence(within(t, limit), "standby"))
	s.ok(p.Unfence(within(t, limit), "standby"))
	pgtest.WaitStreaming(t, s.standby)
}

func TestAPrimaryThatHangsIsCutOff(t *testing.T) {
	s := newScene(t)
	s.ok(s.primary.Pause())
	s.takeOver()
	pgtest.Exec(t, s.standby, "insert into t values (1)")
}

func TestUnfenceLeavesConfigurationInItsFile(t *testing.T) {
	s := newScene(t)
	// As tools do that keep primary_conninfo in postgresql.conf.
	was := pgtest.Value[string](t, s.standby, "select current_setting('primary_conninfo')")
	pgtest.Exec(t, s.standby, "alter system reset primary_conninfo")
	appendConf(t, s.standby, "primary_conninfo = '"+strings.ReplaceAll(was, "'", "''")+"'\n")
	s.ok(s.standby.Restart(t.Context()))
	pgtest.WaitStreaming(t, s.standby)
	s.ok(s.p.Fence(within(t, limit), "standby"))
	s.ok(s.p.Unfence(within(t, limit), "standby"))
	pgtest.WaitStreaming(t, s.standby)
	source := pgtest.Value[string](t, s.standby, "select sourcefile from pg_settings where name = 'primary_conninfo'")
	if !strings.HasSuffix(source, "postgresql.conf") {
		t.Errorf("it is in %s", source)
	}
}

func TestAfterARestartOfTheProgramUnfenceSaysWhatIsLost(t *testing.T) {
	s := newScene(t)
	s.ok(s.p.Fence(within(t, limit), "standby"))
	s.p.Close()
	if err := s.p.Unfence(within(t, limit), "standby"); err == nil || !strings.Contains(err.Error(), "primary_conninfo is empty") {
		t.Errorf("error is %v", err)
	}
}

func TestPausedReplayIsResumed(t *testing.T) {
	for _, fence := range []bool{false, true} {
		t.Run(fmt.Sprintf("fence=%v", fence), func(t *testing.T) {
			s := newScene(t)
			pgtest.Exec(t, s.standby, "select pg_wal_replay_pause()")
			pgtest.Exec(t, s.primary, "insert into t values (1)")
			s.ok(s.primary.Stop(t.Context(), pgserver.Fast))
			if fence {
				s.ok(s.p.Fence(within(t, limit), "standby"))
			}
			_, err := s.p.Drain(within(t, limit), "standby")
			s.ok(err)
			if n := pgtest.Value[int](t, s.standby, "select count(*) from t"); n != 1 {
				t.Errorf("%d rows", n)
			}
		})
	}
}

func TestADelayedStandbyIsReported(t *testing.T) {
	s := newScene(t)
	pgtest.Exec(t, s.standby, "alter system set recovery_min_apply_delay = '1h'")
	pgtest.Exec(t, s.standby, "select pg_reload_conf()")
	pgtest.Exec(t, s.primary, "insert into t values (1)")
	// PostgreSQL stops a WAL receiver only when all is replayed.
	if err := s.p.Fence(within(t, time.Second), "standby"); !errors.Is(err, promote.ErrNotYet) || !strings.Contains(err.Error(), "recovery_min_apply_delay = 1h") {
		t.Errorf("error is %v", err)
	}
	pos, err := s.p.Drain(within(t, 500*time.Millisecond), "standby")
	if !errors.Is(err, promote.ErrNotYet) || !strings.Contains(err.Error(), "recovery_min_apply_delay = 1h") {
		t.Errorf("error is %v", err)
	}
	if pos.LSN == 0 || pos.Timeline != s.rec.Timeline {
		t.Errorf("it got to %v", pos)
	}
}

func TestAStandbyThatWasStartedWithoutItsPrimaryIsDrained(t *testing.T) {
	s := newScene(t)
	pgtest.Exec(t, s.primary, "insert into t values (1)")
	pgtest.WaitReplayed(t, s.primary, s.standby)
	s.ok(s.primary.Kill())
	s.ok(s.standby.Kill())
	s.ok(s.standby.Start(t.Context()))
	s.takeOver()
	if n := pgtest.Value[int](t, s.standby, "select count(*) from t"); n != 1 {
		t.Errorf("%d rows", n)
	}
}

func TestMissingPrivilegesAreNamed(t *testing.T) {
	s := newScene(t)
	pgtest.Exec(t, s.primary, `create role "No Body" login`)
	pgtest.Exec(t, s.primary, "revoke execute on function pg_reload_conf() from "+role)
	pgtest.WaitReplayed(t, s.primary, s.standby)
	before := pgtest.Value[string](t, s.standby, "select current_setting('primary_conninfo')")

	nobody := s.promoter("'No Body'", promote.Options{})
	wantGrants(t, nobody.Fence(within(t, limit), "standby"),
		`GRANT ALTER SYSTEM ON PARAMETER primary_conninfo TO "No Body"`,
		`GRANT EXECUTE ON FUNCTION pg_reload_conf() TO "No Body"`,
		`GRANT pg_monitor TO "No Body"`)
	wantGrants(t, s.p.Fence(within(t, limit), "standby"), `GRANT EXECUTE ON FUNCTION pg_reload_conf() TO pgfp`)
	pgtest.Exec(t, s.standby, "select pg_reload_conf()")
	if after := pgtest.Value[string](t, s.standby, "select current_setting('primary_conninfo')"); after != before {
		t.Error("primary_conninfo was changed half-way")
	}

	s.ok(nobody.Unfence(within(t, limit), "standby"))
	if _, err := nobody.Drain(within(t, limit), "standby"); err != nil {
		t.Errorf("draining needs no privilege, but: %v", err)
	}
	pgtest.Exec(t, s.standby, "select pg_wal_replay_pause()")
	_, err := nobody.Drain(within(t, limit), "standby")
	wantGrants(t, err, `GRANT EXECUTE ON FUNCTION pg_wal_replay_resume() TO "No Body"`)
	wantGrants(t, nobody.Promote(within(t, limit), "standby"), `GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer) TO "No Body"`)
}

// A server whose settings cannot be written says so, and can be promoted all the
// same.
func TestFenceOfAServerWhoseSettingsAreLocked(t *testing.T) {
	s := newScene(t)
	// Where ALTER SYSTEM would write its new file.
	if err := os.Mkdir(filepath.Join(s.standby.Dir(), "data", "postgresql.auto.conf.tmp"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.p.Fence(within(t, limit), "standby"); !errors.Is(err, promote.ErrRefused) {
		t.Fatalf("Fence: %v", err)
	}
	if v := pgtest.Value[string](t, s.standby, "select current_setting('primary_conninfo')"); v == "" {
		t.Error("primary_conninfo is empty")
	}
	_, err := s.p.Drain(within(t, limit), "standby")
	s.ok(err)
	s.ok(s.p.Promote(within(t, limit), "standby"))
	_, err = s.p.Verify(within(t, limit), "standby", s.rec)
	s.ok(err)
}

func wantGrants(t *testing.T, err error, grants ...string) {
	t.Helper()
	var p *promote.PrivilegeError
	if !errors.As(err, &p) {
		t.Errorf("error is %v", err)
	} else if !slices.Equal(p.Grants, grants) {
		t.Errorf("grants are %q, want %q", p.Grants, grants)
	}
}

func TestVerifyRefusesWhatIsNotTheNextPrimary(t *testing.T) {
	s := newScene(t)
	if _, err := s.p.Verify(within(t, limit), "standby", s.rec); !errors.Is(err, promote.ErrStandby) {
		t.Errorf("a standby: %v", err)
	}
	s.ok(s.p.Promote(within(t, limit), "standby"))
	const nextXID = "select pg_snapshot_xmax(pg_current_snapshot())::text" // a transactional message takes one
	before := pgtest.Value[string](t, s.standby, nextXID)
	foreign, later := s.rec, s.rec
	foreign.System++
	later.Timeline++
	if _, err := s.p.Verify(within(t, limit), "standby", foreign); !errors.Is(err, promote.ErrForeign) {
		t.Errorf("another cluster: %v", err)
	}
	if _, err := s.p.Verify(within(t, limit), "standby", later); !errors.Is(err, promote.ErrOldTimeline) {
		t.Errorf("a timeline that has not grown: %v", err)
	}
	if after := pgtest.Value[string](t, s.standby, nextXID); after != before {
		t.Error("it wrote to a server that it refused")
	}
	pgtest.Exec(t, s.standby, "alter system set synchronous_standby_names = 'nobody'")
	pgtest.Exec(t, s.standby, "select pg_reload_conf()")
	if _, err := s.p.Verify(within(t, limit), "standby", s.rec); err != nil || pgtest.Value[string](t, s.standby, nextXID) == before {
		t.Errorf("a primary that waits for a synchronous standby: %v", err)
	}
}

func TestAServerThatDoesNotAnswerIsNotYet(t *testing.T) {
	s := newScene(t)
	s.ok(s.p.Fence(within(t, limit), "standby")) // there is a kept connection
	s.ok(s.standby.Pause())
	short := func() context.Context { return within(t, 200*time.Millisecond) }
	began := time.Now()
	_, drained := s.p.Drain(short(), "standby")
	_, verified := s.p.Verify(short(), "standby", s.rec)
	for _, err := range []error{s.p.Fence(short(), "standby"), drained, s.p.Promote(short(), "standby"), verified} {
		if !errors.Is(err, promote.ErrNotYet) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error is %v", err)
		}
	}
	if d := time.Since(began); d > limit {
		t.Errorf("it took %v", d)
	}
	s.standby.Resume()
	s.ok(s.p.Promote(within(t, limit), "standby"))
}

func TestABrokenConnectionIsOpenedAgain(t *testing.T) {
	s := newScene(t)
	if _, err := s.p.Drain(within(t, limit), "standby"); err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, s.standby, "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgfailproxy'")
	if _, err := s.p.Drain(within(t, limit), "standby"); err != nil {
		t.Error(err)
	}
	s.p.Release()
	pgtest.Until(t, limit, func() error {
		if n := pgtest.Value[int](t, s.standby, "select count(*) from pg_stat_activity where application_name = 'pgfailproxy'"); n != 0 {
			return fmt.Errorf("%d connections are left", n)
		}
		return nil
	})
	if _, err := s.p.Drain(within(t, limit), "standby"); err != nil {
		t.Error(err)
	}
}

func TestAStandbysPasswordIsGivenBackAndNeverShown(t *testing.T) {
	const password = `s3cr3t '\" pass`
	t.Parallel()
	s := &scene{T: t, log: new(logBuffer)}
	s.primary = pgtest.Primary(t, pgserver.Options{Password: password})
	s.standby = pgtest.Standby(t, s.primary, pgserver.Options{})
	s.p = s.promoter(pgserver.Superuser, promote.Options{})
	before := pgtest.Value[string](t, s.standby, "select current_setting('primary_conninfo')")
	if !strings.Contains(before, "s3cr3t") {
		t.Fatal("primary_conninfo has no password: this proves nothing")
	}
	s.ok(s.p.Fence(within(t, limit), "standby"))
	if err := s.p.Unfence(within(t, time.Nanosecond), "standby"); !errors.Is(err, promote.ErrNotYet) || strings.Contains(err.Error(), "s3cr3t") {
		t.Errorf("error is %v", err)
	}
	s.ok(s.p.Unfence(within(t, limit), "standby"))
	pgtest.WaitStreaming(t, s.standby)
	if after := pgtest.Value[string](t, s.standby, "select current_setting('primary_conninfo')"); after != before {
		t.Error("primary_conninfo came back changed")
	}
	if strings.Contains(s.log.String(), "s3cr3t") {
		t.Error("the log has the password")
	}
}

func TestAnUnknownMemberIsAnError(t *testing.T) {
	p := promote.New(nil, promote.Options{}, slog.New(slog.DiscardHandler))
	defer p.Close()
	if err := p.Promote(t.Context(), "x"); err == nil || errors.Is(err, promote.ErrNotYet) {
		t.Errorf("error is %v", err)
	}
}
