package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// series is what was measured of one workload through one target.
type series struct {
	runs   []work
	cpu    []float64 // seconds of the proxy per transaction or byte
	failed []error
}

// throughput runs every workload through every target, all targets in turn
// within one workload and all workloads within one round, so that whatever else
// the machine does hits all alike, and prints one table.
func throughput(ctx context.Context, o options) (err error) {
	works := chosen(workloads(), o.only)
	if len(works) == 0 {
		return fmt.Errorf("no workload's name begins with %s", strings.Join(o.only, " or "))
	}
	s, err := startServer(ctx, o.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	targets, err := startTargets(ctx, o, s)
	defer func() {
		for _, t := range targets {
			if t.proc != nil {
				t.proc.stop()
			}
		}
	}()
	if err != nil {
		return err
	}
	if err := prepare(ctx, o, s); err != nil {
		return fmt.Errorf("fill the tables: %w", err)
	}

	results := make([][]series, len(works)) // by workload, then by target
	for i := range results {
		results[i] = make([]series, len(targets))
	}
	for round := range o.rounds {
		for i, w := range works {
			for turn := range targets {
				j := (turn + round) % len(targets) // no target is always the first
				results[i][j].measure(ctx, o, s, w, targets[j])
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
			}
			progress("round %d of %d: %s", round+1, o.rounds, w.name)
		}
	}
	printThroughput(o, s, works, targets, results)
	for i, w := range works {
		for j, t := range targets {
			if n := len(results[i][j].failed); n > 0 {
				err = errors.Join(err, fmt.Errorf("%s through %s failed in %d of %d rounds", w.name, t.name, n, o.rounds))
			}
		}
	}
	return err
}

// prepare makes the tables and reads them once.
func prepare(ctx context.Context, o options, s *server) error {
	if _, err := command(s.pgbench(ctx, "-i", "-q", "-s", strconv.Itoa(o.scale), connString(s.port))); err != nil {
		return err
	}
	if _, err := query(ctx, connString(s.port), "CREATE TABLE bench_sink (line text); CHECKPOINT"); err != nil {
		return err
	}
	_, err := command(s.pgbench(ctx, "-n", "-S", "-T", "1", "-c", "8", connString(s.port)))
	return err
}

// measure adds one run.
func (r *series) measure(ctx context.Context, o options, s *server, w workload, t *target) {
	var before, after time.Duration
	var err error
	if t.proc != nil {
		if before, err = t.proc.cpu(); err != nil {
			r.failed = append(r.failed, err)
			return
		}
	}
	done, err := w.run(ctx, o, s, t.port)
	if err == nil && t.proc != nil {
		after, err = t.proc.cpu()
	}
	if err == nil && done.count == 0 {
		err = errors.New("nothing was done")
	}
	if err != nil {
		progress("%s through %s: %v", w.name, t.name, err)
		r.failed = append(r.failed, err)
		return
	}
	r.runs = append(r.runs, done)
	r.cpu = append(r.cpu, (after-before).Seconds()/done.count)
}

func printThroughput(o options, s *server, works []workload, targets []*target, results [][]series) {
	facts := []string{
		"Server: PostgreSQL " + s.version + "; trust authentication and no TLS for all, fsync on",
		fmt.Sprintf("Rounds: %d; in each, every workload through all targets in turn, pgbench %d s each (scale %d), COPY %d MB in rows of %d bytes; churn is a new connection for every select",
			o.rounds, o.seconds, o.scale, o.copy/1_000_000, rowSize),
		"Client, proxy and server share the machine. Numbers are medians of the rounds, with the least and the most. CPU is what the proxy's own process took (user and system), per transaction or per GB",
	}
	for _, t := range targets {
		facts = append(facts, t.name+": "+t.version)
	}
	printHead("Throughput and cost", facts...)
	fmt.Println("| workload, clients | target | rate | least – most | latency, mean | CPU of the proxy |")
	fmt.Println("|---|---|---:|---:|---:|---:|")
	var notes []string
	for i, w := range works {
		name := w.name
		for j, t := range targets {
			r := results[i][j]
			rate, spread, latency, cpu := r.cells(w, t)
			if n := len(r.failed); n > 0 {
				rate = strings.TrimSpace(fmt.Sprintf("%s (%d of %d failed)", rate, n, o.rounds))
				notes = append(notes, fmt.Sprintf("%s through %s: %v", w.name, t.name, r.failed[0]))
			}
			fmt.Printf("| %s | %s | %s | %s | %s | %s |\n", name, t.name, rate, spread, latency, cpu)
			name = ""
		}
	}
	fmt.Println()
	for _, n := range notes {
		fmt.Printf("- Failed: %s\n", n)
	}
}

// cells are the columns of a row that hold numbers.
func (r series) cells(w workload, t *target) (rate, spread, latency, cpu string) {
	if len(r.runs) == 0 {
		return "", "", "", ""
	}
	var rates, latencies []float64
	for _, run := range r.runs {
		rates = append(rates, run.rate)
		latencies = append(latencies, run.latency)
	}
	unit, scale := "tps", 1.0
	if w.bytes {
		unit, scale = "MB/s", 1e6
	}
	rate = fmt.Sprintf("%.0f %s", median(rates)/scale, unit)
	spread = fmt.Sprintf("%.0f – %.0f", slices.Min(rates)/scale, slices.Max(rates)/scale)
	if !w.bytes {
		latency = fmt.Sprintf("%.3f ms", median(latencies))
	}
	switch {
	case t.proc == nil:
	case w.bytes:
		cpu = fmt.Sprintf("%.2f s/GB", median(r.cpu)*1e9)
	default:
		cpu = fmt.Sprintf("%.1f µs", median(r.cpu)*1e6)
	}
	return rate, spread, latency, cpu
}

// median returns the middle of values, of which there is at least one.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
