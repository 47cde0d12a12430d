package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// maxSessions is how many one address of the loopback has ports for, with
	// some left for others.
	maxSessions = 25_000
	// active is how many sessions have a query under way at a time.
	active = 8
	// logins is how many sessions begin at a time.
	logins = 16
	// spareFiles are descriptors that a process has for other things.
	spareFiles = 500
	// residentGoal is the most that we want an idle session to hold of a proxy's
	// memory, in bytes.
	residentGoal = 2 << 10
)

// step is what was measured of a proxy with so many sessions.
type step struct {
	series
	resident []float64 // bytes more than at rest, for each session
}

// growth is what was measured of a proxy while its sessions grew.
type growth struct {
	name, version string
	rest          []float64 // resident bytes without a session
	steps         []step    // by the counts
	failed        []error
}

// sessions has the number of sessions through each proxy grow, a new process each
// time, all proxies in turn, and prints one table. The server behind is one that
// does nothing, because a real one would not hold so many.
func sessions(ctx context.Context, o options) error {
	names, err := o.chosenTargets()
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(slices.Clone(names), func(name string) bool { return name == direct })
	if o.counts, err = fit(o.counts); err != nil {
		return err
	}
	growths := make([]growth, len(names))
	for i, name := range names {
		growths[i] = growth{name: name, steps: make([]step, len(o.counts))}
	}
	for round := range o.growths {
		for turn := range names {
			i := (turn + round) % len(names)
			err := growths[i].grow(ctx, o, round)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				progress("sessions through %s: %v", names[i], err)
				growths[i].failed = append(growths[i].failed, err)
			}
			progress("growth %d of %d: %s", round+1, o.growths, names[i])
		}
	}
	printSessions(o, growths)
	for _, g := range growths {
		if n := len(g.failed); n > 0 {
			err = errors.Join(err, fmt.Errorf("sessions through %s failed in %d of %d growths", g.name, n, o.growths))
		}
	}
	return err
}

// fit lowers counts to what a proxy may have descriptors for, two for each
// session, and lets the programs that are started have as many as there are.
func fit(counts []int) (fitting []int, err error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return nil, err
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return nil, err
	}
	most := int(min(limit.Max, 1<<20)-spareFiles) / 2
	for _, n := range counts {
		if n > most {
			progress("%d sessions need more than the %d files that a process may have here (ulimit -Hn): %d instead", n, limit.Max, most)
		}
		fitting = append(fitting, min(n, most))
	}
	return slices.Compact(fitting), nil
}

// grow measures one proxy from its start to its most sessions.
func (g *growth) grow(ctx context.Context, o options, round int) (err error) {
	if o.dir, err = makeDir(o.dir, "growth-"); err != nil {
		return err
	}
	fake, port, err := startFake(o.dir)
	if err != nil {
		return err
	}
	defer fake.stop()
	if err := awaitPostgres(ctx, port); err != nil {
		return fmt.Errorf("wait for the server that does nothing: %w\n%s", err, fake.tail())
	}
	most := o.counts[len(o.counts)-1]
	t, err := startTarget(ctx, o, g.name, &server{port: port}, most+50)
	if err != nil {
		return err
	}
	defer t.stop()
	g.version = t.version
	var all crowd
	defer func() { all.leave() }() // while the proxy is there, the fake not yet gone
	if err := settle(ctx, o); err != nil {
		return err
	}
	rest, err := t.proc.resident()
	if err != nil {
		return err
	}
	g.rest = append(g.rest, float64(rest))
	for i, n := range o.counts {
		if err := all.grow(ctx, t.port, n); err != nil {
			return fmt.Errorf("%d sessions: %w\n%s", n, err, t.proc.tail())
		}
		if err := g.steps[i].measureAll(ctx, o, t, all, float64(rest), round); err != nil {
			return fmt.Errorf("%d sessions: %w", n, err)
		}
	}
	return nil
}

// measureAll measures the memory while nothing happens, then the work.
func (s *step) measureAll(ctx context.Context, o options, t *target, all crowd, rest float64, round int) error {
	if err := settle(ctx, o); err != nil {
		return err
	}
	now, err := t.proc.resident()
	if err != nil {
		return err
	}
	s.resident = append(s.resident, (float64(now)-rest)/float64(len(all)))
	return s.measure(round, t, func() (work, error) {
		defer o.profile(t, fmt.Sprintf("sessions %d", len(all)), round)()
		return all.work(ctx, time.Duration(o.seconds)*time.Second)
	})
}

// settle lets everybody come to rest.
func settle(ctx context.Context, o options) error {
	select {
	case <-time.After(o.settle):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// crowd is many sessions.
type crowd []*pgconn.PgConn

// grow adds sessions until there are n. Each has had a query, since PgBouncer takes a
// server only then.
func (c *crowd) grow(ctx context.Context, port, n int) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	config, err := pgconn.ParseConfig(connString(port))
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	var mu sync.Mutex // of what follows
	var failed error
	missing := n - len(*c)
	for range logins {
		all.Go(func() {
			for {
				mu.Lock()
				if missing == 0 || failed != nil {
					mu.Unlock()
					return
				}
				missing--
				mu.Unlock()
				conn, err := pgconn.ConnectConfig(ctx, config)
				if err == nil {
					_, err = conn.Exec(ctx, "SELECT 1").ReadAll()
				}
				mu.Lock()
				if conn != nil {
					*c = append(*c, conn)
				}
				failed = errors.Join(failed, err)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return failed
}

// work has queries sent for so long: a few sessions at a time, all in turn, so that
// those that are idle are not forgotten by the processor only.
func (c crowd) work(ctx context.Context, length time.Duration) (w work, err error) {
	end := time.Now().Add(length)
	for _, conn := range c { // whatever hangs is a failure
		conn.Conn().SetDeadline(end.Add(30 * time.Second))
	}
	workers := min(active, len(c))
	taken := make([][]float64, workers) // milliseconds
	failed := make([]error, workers)
	var all sync.WaitGroup
	start := time.Now()
	for i := range workers {
		all.Go(func() {
			for n := i; failed[i] == nil && ctx.Err() == nil; n += workers {
				if n >= len(c) {
					n = i
				}
				began := time.Now()
				if began.After(end) {
					return
				}
				// The deadline is the connection's: a context would cost a goroutine.
				_, failed[i] = c[n].Exec(context.Background(), "SELECT 1").ReadAll()
				taken[i] = append(taken[i], time.Since(began).Seconds()*1000)
			}
		})
	}
	all.Wait()
	latencies := slices.Concat(taken...)
	w.count = float64(len(latencies))
	w.rate = w.count / time.Since(start).Seconds()
	w.p99 = p99(latencies)
	return w, errors.Join(append(failed, ctx.Err())...)
}

// leave ends all sessions at once.
func (c crowd) leave() {
	for _, conn := range c {
		conn.Conn().Close()
	}
}

func printSessions(o options, growths []growth) {
	facts := []string{
		fmt.Sprintf("Server: a program that lets everybody in and answers every query with one row; trust authentication and no TLS. A new proxy for each of %d growths", o.growths),
		fmt.Sprintf("Memory: resident memory of the proxy's process beyond that without a session, divided by the sessions, each of which has logged in, had a query, and then been idle for %v. What the kernel keeps for their sockets is not in it, and is the same for all", o.settle),
		fmt.Sprintf("Then up to %d sessions have a query under way at a time, each time others, for %d s: rate, p99 and CPU of the proxy (user and system)", active, o.seconds),
		"Numbers are **medians** of the growths, with the least and the most. Client, proxy and server share the machine",
	}
	for _, g := range growths {
		if g.version != "" { // it has started
			facts = append(facts, g.name+": "+g.version)
		}
	}
	printHead("Sessions", facts...)
	fmt.Println("| sessions | target | memory of each, KiB (without a session: of the process) | rate, tps | p99, ms | CPU of the proxy, µs |")
	fmt.Println("|---:|---|---:|---:|---:|---:|")
	for _, g := range growths {
		fmt.Printf("| 0 | %s | %s | | | |\n", g.name, spread(g.rest, 1.0/1024, "%.0f"))
	}
	for i, n := range o.counts {
		for _, g := range growths {
			s := g.steps[i]
			fmt.Printf("| %d | %s | %s | %s | %s | %s |\n", n, g.name, spread(s.resident, 1.0/1024, "%.1f"),
				spread(s.values(rateOf), 1, "%.0f"), spread(s.values(p99Of), 1, "%.3f"), spread(s.values(cpuOf), 1e6, "%.1f"))
		}
	}
	fmt.Println()
	for _, g := range growths {
		for _, err := range g.failed {
			fmt.Printf("- Failed, %s: %v\n\n", g.name, err)
		}
		if g.name == self {
			last, wanted := g.steps[len(g.steps)-1].resident, goal{limit: residentGoal}
			fmt.Printf("Goal: bytes of %s for each of %d idle sessions: %s, wanted ≤ %d: %s\n\n",
				self, o.counts[len(o.counts)-1], spread(last, 1, "%.0f"), residentGoal, wanted.verdict(last))
		}
	}
}
