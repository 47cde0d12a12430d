package promote_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgfailproxy/internal/pgserver"
	"pgfailproxy/internal/pgtest"
	"pgfailproxy/promote"
)

// runCommand runs a fence command and returns its error and what was logged.
func runCommand(t *testing.T, ctx context.Context, command string) (string, error) {
	var log logBuffer
	p := promote.New(nil, promote.Options{}, slog.New(slog.NewTextHandler(&log, nil)))
	defer p.Close()
	err := p.RunFenceCommand(ctx, command, "pg1", "pg2", 57)
	return log.String(), err
}

func TestAFenceCommandKnowsWhomToFence(t *testing.T) {
	t.Setenv("PGPASSWORD", "s3cr3t")
	t.Setenv("PGFAILPROXY_MEMBERS", "s3cr3t")
	log, err := runCommand(t, within(t, limit), `echo "$PGFAILPROXY_OLD_PRIMARY $PGFAILPROXY_NEW_PRIMARY $PGFAILPROXY_EPOCH."; env`)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log, "pg1 pg2 57.") {
		t.Errorf("log is %s", log)
	}
	if strings.Contains(log, "s3cr3t") {
		t.Error("it was given a secret")
	}
}

func TestAFenceCommandThatFailsSaysWhy(t *testing.T) {
	log, err := runCommand(t, within(t, limit), "echo first; echo no such host >&2; exit 3 # s3cr3t")
	if err == nil || !strings.Contains(err.Error(), "exit status 3: no such host") {
		t.Errorf("error is %v", err)
	}
	if strings.Contains(log+err.Error(), "s3cr3t") {
		t.Error("the command itself is shown")
	}
}

func TestAFenceCommandThatHangsIsKilledWithAllThatItStarted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		for {
			if b, _ := os.ReadFile(file); strings.HasSuffix(string(b), "\n") {
				break
			}
			time.Sleep(time.Millisecond)
		}
		cancel(fmt.Errorf("enough"))
	}()
	_, err := runCommand(t, ctx, "sleep 1000 & echo $! > "+file+"; wait")
	if err == nil || !strings.Contains(err.Error(), "killed after") || !strings.Contains(err.Error(), "enough") {
		t.Errorf("error is %v", err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	pgtest.Until(t, limit, func() error {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err == nil && !strings.Contains(string(stat), ") Z ") || err != nil && syscall.Kill(pid, 0) == nil {
			return fmt.Errorf("what it started (%d) still runs", pid)
		}
		return nil
	})
}

func TestAFenceCommandMayLeaveSomethingRunning(t *testing.T) {
	if _, err := runCommand(t, within(t, limit), "sleep 3 & echo done"); err != nil {
		t.Error(err)
	}
}

func TestTheOutputOfAFenceCommandIsBounded(t *testing.T) {
	log, err := runCommand(t, within(t, limit), "head -c 3000000 /dev/zero | tr '\\0' x; echo; echo the end; exit 1")
	if err == nil || !strings.HasSuffix(err.Error(), "the end") {
		t.Errorf("error is %.200v", err)
	}
	if len(log) > 5<<10 {
		t.Errorf("%d bytes were logged", len(log))
	}
}

// appendConf adds lines to a server's postgresql.conf.
func appendConf(t *testing.T, s *pgserver.Server, lines string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(s.Dir(), "data", "postgresql.conf"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(lines); err != nil {
		t.Fatal(err)
	}
}
