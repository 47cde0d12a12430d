package pgserver_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgfailproxy/internal/pgserver"
	"pgfailproxy/internal/pgtest"
)

func TestAStandbyFollowsItsPrimary(t *testing.T) {
	primary, standby := pgtest.Pair(t)
	pgtest.Exec(t, primary, "create table t as select 42 as n")
	pgtest.WaitReplayed(t, primary, standby)
	if n := pgtest.Value[int](t, standby, "select n from t"); n != 42 {
		t.Errorf("the standby has n = %d", n)
	}
	if primary.Port() == standby.Port() {
		t.Errorf("both on port %d", primary.Port())
	}
}

func TestAPasswordIsAskedForAndPassedOnToTheStandby(t *testing.T) {
	const password = `it's a \secret`
	primary := pgtest.Primary(t, pgserver.Options{Password: password})
	standby := pgtest.Standby(t, primary, pgserver.Options{})
	for _, s := range []*pgserver.Server{primary, standby} {
		pgtest.Value[int](t, s, "select 1")
		_, err := pgconn.Connect(t.Context(), fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres password=wrong", s.Host(), s.Port()))
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || pgErr.Code != "28P01" {
			t.Errorf("%s with a wrong password: %v", s.Name(), err)
		}
	}
}

func TestAKilledServerComesBackOnItsPortWithItsRows(t *testing.T) {
	s := pgtest.Primary(t, pgserver.Options{})
	pgtest.Exec(t, s, "create table t as select 42 as n")
	port := s.Port()
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", s.Addr()); err == nil {
		c.Close()
		t.Error("something still listens")
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.Port() != port {
		t.Errorf("port was %d, is %d", port, s.Port())
	}
	if n := pgtest.Value[int](t, s, "select n from t"); n != 42 {
		t.Errorf("n = %d", n)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	pgtest.Value[int](t, s, "select n from t")
}

func TestAPausedServerHangsUntilItIsResumed(t *testing.T) {
	s := pgtest.Primary(t, pgserver.Options{})
	conn := pgtest.Conn(t, s)
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() { answered <- conn.Ping(t.Context()) }()
	select {
	case err := <-answered:
		t.Fatalf("it answered while it was paused: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	s.Resume()
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
}

func TestAPausedServerCanBeKilledAndStartedAgain(t *testing.T) {
	s := pgtest.Primary(t, pgserver.Options{})
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	pgtest.Value[int](t, s, "select 1")
}

func TestAServerThatCannotStartSaysWhy(t *testing.T) {
	dir, err := os.MkdirTemp("", "pgserver-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	s, err := pgtest.Install(t).InitPrimary(t.Context(), dir, pgserver.Options{Settings: map[string]string{"max_connections": "many"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	err = s.Start(t.Context())
	if err == nil || !strings.Contains(err.Error(), "max_connections") {
		t.Errorf("error is %v", err)
	}
	if _, err := pgtest.Install(t).InitPrimary(t.Context(), dir, pgserver.Options{}); !errors.Is(err, os.ErrExist) {
		t.Errorf("a folder in use was taken: %v", err)
	}
}

func TestStopWithinTooShortATimeIsAnErrorAndClosingStillEndsIt(t *testing.T) {
	s := pgtest.Primary(t, pgserver.Options{})
	pgtest.Conn(t, s) // a smart stop waits for it
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Stop(ctx, pgserver.Smart); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
}

func TestAKilledServerLeavesNothingOnTheMachine(t *testing.T) {
	dir, err := os.MkdirTemp("", "pgserver-")
	if err != nil {
		t.Fatal(err)
	}
	s, err := pgtest.Install(t).InitPrimary(t.Context(), dir, pgserver.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	var key, id int
	if _, err := fmt.Sscan(strings.Split(string(b), "\n")[6], &key, &id); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its folder: %v", err)
	}
	if segments, err := os.ReadFile("/proc/sysvipc/shm"); err == nil && strings.Contains(string(segments), fmt.Sprintf(" %d ", id)) {
		t.Errorf("its shared memory segment %d is still there", id)
	}
}

// A second process starts a server, pauses it if told so, and is killed.
func TestNothingOutlivesAProgramThatIsKilled(t *testing.T) {
	for _, state := range []string{"running", "paused"} {
		t.Run(state, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "pgserver-")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			cmd := exec.Command(os.Args[0], "-test.run=^TestHelperThatIsKilled$")
			cmd.Env = append(os.Environ(), "PGSERVER_HELPER_DIR="+filepath.Join(dir, "server"), "PGSERVER_HELPER_STATE="+state)
			os.Chmod(dir, 0o755)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line := bufio.NewScanner(out)
			if !line.Scan() || line.Text() != "up" {
				cmd.Process.Kill()
				t.Fatalf("the helper said %q", line.Text())
			}
			pid := mainPID(t, filepath.Join(dir, "server", "data"))
			cmd.Process.Kill()
			cmd.Wait()
			pgtest.Until(t, 10*time.Second, func() error {
				if out, err := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output(); err == nil && !strings.HasPrefix(string(out), "Z") {
					return fmt.Errorf("the server (%d) is still there: %s", pid, out)
				}
				return nil
			})
		})
	}
}

func mainPID(t *testing.T, data string) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("the server is not there: %v", err)
	}
	return pid
}

// TestHelperThatIsKilled is the second process of the test above. Run by
// itself it has nothing to do.
func TestHelperThatIsKilled(t *testing.T) {
	dir := os.Getenv("PGSERVER_HELPER_DIR")
	if dir == "" {
		return
	}
	s, err := pgtest.Install(t).InitPrimary(t.Context(), dir, pgserver.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if os.Getenv("PGSERVER_HELPER_STATE") == "paused" {
		if err := s.Pause(); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Println("up")
	time.Sleep(time.Minute) // we are killed meanwhile
}
