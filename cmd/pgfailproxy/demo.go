package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgfailproxy/config"
	"pgfailproxy/failover"
	"pgfailproxy/internal/history"
	"pgfailproxy/internal/pgserver"
)

const demoUse = `Usage: pgfailproxy demo [flags]

Shows a failover on this machine: starts a primary and a standby of its own in a
temporary folder, the proxy in front, and a writer; kills the primary in the
middle; then counts whether every acknowledged row is there. It needs
PostgreSQL's server programs, touches nothing else, and cleans up, also on
Ctrl-C.`

// demo is one run of it.
type demo struct {
	story *story
	dir   string
	one   *pgserver.Server
	two   *pgserver.Server
}

func demoCommand(ctx context.Context, args []string, std streams) (err error) {
	fs := flags("demo", demoUse, std)
	writing := fs.Duration("writing", 3*time.Second, "how long to write before the primary is killed, and again after")
	if done, err := parse(fs, args, std); done {
		return err
	}
	if *writing <= 0 {
		return fmt.Errorf("--writing must be longer than 0")
	}
	install, err := pgserver.Find()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "pgfailproxy-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// As root the servers run as somebody else, who has to get through here.
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	ctx, _, cancel := untilSignalled(ctx)
	defer cancel()
	d := &demo{story: &story{out: std.out, began: time.Now()}, dir: dir}
	err = d.run(ctx, install, *writing)
	d.close()
	if ctx.Err() != nil {
		fmt.Fprintln(std.out, "interrupted; everything is cleaned up")
		return exitCode(130)
	}
	return err
}

func (d *demo) close() {
	for _, s := range []*pgserver.Server{d.two, d.one} {
		if s != nil {
			s.Close()
		}
	}
}

func (d *demo) run(ctx context.Context, install pgserver.Install, writing time.Duration) error {
	d.story.tell("PostgreSQL %d from %s", install.Major, install.Bin)
	if err := d.startServers(ctx, install); err != nil {
		return err
	}
	i, err := d.newInstance()
	if err != nil {
		return err
	}
	proxyCtx, stop := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	failed := make(chan error, 1)
	wg.Go(func() { failed <- i.run(proxyCtx, context.WithoutCancel(ctx)) })
	defer wg.Wait()
	defer stop(errStopped)
	defer d.story.end() // how the proxy shuts down is no part of it

	host, port, _ := strings.Cut(i.clients.Addr().String(), ":")
	d.story.tell("the one port for clients: psql -h %s -p %s -U %s postgres", host, port, pgserver.Superuser)
	if err := until(ctx, failed, func() bool { return i.controller.Status().State == failover.Serving }); err != nil {
		return err
	}
	return d.play(ctx, i, failed, writing)
}

func (d *demo) startServers(ctx context.Context, install pgserver.Install) (err error) {
	// A promotion right after the primary's death would else wait for up to 5 s.
	settings := map[string]string{"wal_retrieve_retry_interval": "100ms"}
	d.one, err = install.InitPrimary(ctx, filepath.Join(d.dir, "pg1"), pgserver.Options{Name: "pg1", Settings: settings})
	if err != nil {
		return err
	}
	if err := d.one.Start(ctx); err != nil {
		return err
	}
	d.story.tell("pg1, the primary, is up on %s", d.one.Addr())
	d.two, err = install.CloneStandby(ctx, d.one, filepath.Join(d.dir, "pg2"), pgserver.Options{Name: "pg2", Settings: settings})
	if err != nil {
		return err
	}
	if err := d.two.Start(ctx); err != nil {
		return err
	}
	d.story.tell("pg2, its hot standby, is up on %s", d.two.Addr())
	if err := d.synchronize(ctx); err != nil {
		return err
	}
	d.story.tell("pg1 acknowledges a commit only when pg2 has it too (synchronous_standby_names)")
	return nil
}

// synchronize has pg1 wait for pg2 with each commit: replication without that
// may lose what was acknowledged in the last milliseconds, and there would be
// nothing to prove. It is set on pg1 alone, so that pg2 waits for nobody.
func (d *demo) synchronize(ctx context.Context) error {
	conn, err := pgconn.Connect(ctx, d.one.ConnString(pgserver.Superuser, "postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for _, sql := range []string{"alter system set synchronous_standby_names = 'pg2'", "select pg_reload_conf()"} {
		if _, err := conn.Exec(ctx, sql).ReadAll(); err != nil {
			return err
		}
	}
	return until(ctx, nil, func() bool {
		results, err := conn.Exec(ctx, "select from pg_stat_replication where application_name = 'pg2' and sync_state = 'sync'").ReadAll()
		return err == nil && len(results) == 1 && len(results[0].Rows) == 1
	})
}

// newInstance makes the same proxy that run does, by the same flags.
func (d *demo) newInstance() (*instance, error) {
	fs := flags("run", runUse, streams{io.Discard, io.Discard})
	src := config.Flags(fs)
	err := fs.Parse([]string{
		"--listen", "127.0.0.1:0", "--admin", "", "--record", filepath.Join(d.dir, "record"),
		"--member", "pg1=" + d.one.ConnString(pgserver.Superuser, "postgres"),
		"--member", "pg2=" + d.two.ConnString(pgserver.Superuser, "postgres"),
	})
	if err != nil {
		return nil, err
	}
	cfg, err := src.Load(nil)
	if err != nil {
		return nil, err
	}
	return newInstance(cfg, slog.New(&storyteller{d.story}))
}

// play writes, kills, writes on and counts.
func (d *demo) play(ctx context.Context, i *instance, failed <-chan error, writing time.Duration) error {
	w, err := newWriter(ctx, i.clients.Addr().String())
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	writeCtx, stop := context.WithCancel(ctx)
	defer wg.Wait()
	defer stop()
	wg.Go(func() { w.run(writeCtx) })

	if err := sleep(ctx, failed, writing); err != nil {
		return err
	}
	before := w.ledger.Count(history.Acknowledged)
	d.story.tell("the writer has %d rows acknowledged", before)
	d.story.tell("KILL -9: pg1 dies, with all its processes")
	if err := d.one.Kill(); err != nil {
		return err
	}
	killed := time.Now()
	if err := until(ctx, failed, func() bool { return w.outage(killed) > 0 }); err != nil {
		return err
	}
	d.story.tell("the writer goes on: its next row is acknowledged, %s after the kill", roundUp(w.outage(killed)))
	if err := sleep(ctx, failed, writing); err != nil {
		return err
	}
	stop()
	wg.Wait()
	return d.count(ctx, w, before)
}

// count compares what the writer was told with what is in pg2's table.
func (d *demo) count(ctx context.Context, w *writer, before int) error {
	result, err := w.check(ctx, d.two.ConnString(pgserver.Superuser, "postgres"))
	if err != nil {
		return err
	}
	d.story.tell("rows acknowledged before the kill: %d; after it: %d", before, result.Acknowledged-before)
	d.story.tell("sent and never answered, so in doubt: %d, of which %d are there", result.InDoubt, result.InDoubtThere)
	if err := result.Err(); err != nil {
		return err
	}
	d.story.tell("proof: pg2 has every one of the %d acknowledged rows, and none twice", result.Acknowledged)
	return nil
}

// sleep waits, unless the proxy fails first.
func sleep(ctx context.Context, failed <-chan error, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case err := <-failed:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// until waits for a condition, for at most half a minute.
func until(ctx context.Context, failed <-chan error, done func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("nothing happened for 30 s"))
	defer cancel()
	for !done() {
		if err := sleep(ctx, failed, 5*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// story prints lines with the time since it began.
type story struct {
	mu    sync.Mutex // guards ended, and one line from the next
	out   io.Writer
	began time.Time
	ended bool
}

func (s *story) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
}

func (s *story) tell(format string, args ...any) { s.line("", fmt.Sprintf(format, args...)) }

func (s *story) line(who, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	fmt.Fprintf(s.out, "%7.3f s  %-6s %s\n", time.Since(s.began).Seconds(), who, text)
}

// storyteller is a log handler that has the proxy tell its part of the story.
type storyteller struct{ story *story }

func (t *storyteller) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }
func (t *storyteller) WithAttrs([]slog.Attr) slog.Handler           { return t }
func (t *storyteller) WithGroup(string) slog.Handler                { return t }

// shown are the attributes that matter in a story.
var shown = []string{"member", "candidate", "cause", "lsn", "timeline", "bytes_at_risk", "verdict", "took"}

func (t *storyteller) Handle(_ context.Context, r slog.Record) error {
	parts := []string{r.Message}
	r.Attrs(func(a slog.Attr) bool {
		for _, key := range shown {
			if a.Key == key && a.Value.String() != "" {
				a = forPeople(nil, a)
				parts = append(parts, fmt.Sprintf("%s=%v", a.Key, a.Value))
			}
		}
		return true
	})
	t.story.line("proxy:", strings.Join(parts, " "))
	return nil
}
