package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// throughputClients is for how many clients the proxies are set up: more than any
// workload has.
const throughputClients = 1000

// throughput runs every workload through every target, all targets in turn
// within one workload and all workloads within one round, so that whatever else
// the machine does hits all alike, and prints what came of it.
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
			t.stop()
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
				t := targets[j]
				err := results[i][j].measure(round, t, func() (work, error) {
					defer o.profile(t, w.name, round)()
					return w.run(ctx, o, s, t.port)
				})
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err != nil {
					progress("%s through %s: %v", w.name, t.name, err)
				}
			}
			progress("round %d of %d: %s", round+1, o.rounds, w.name)
		}
	}
	printThroughput(o, s, works, targets, results)
	printGoals(works, targets, results)
	return failures(o, works, targets, results)
}

// startTargets starts those that o asks for. The caller stops them, also when
// there is an error.
func startTargets(ctx context.Context, o options, s *server) (all []*target, err error) {
	names, err := o.chosenTargets()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		t, err := startTarget(ctx, o, name, s, throughputClients)
		if err != nil {
			return all, err
		}
		all = append(all, t)
	}
	return all, nil
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

func printThroughput(o options, s *server, works []workload, targets []*target, results [][]series) {
	facts := []string{
		"Server: PostgreSQL " + s.version + "; no TLS for all, fsync on",
		fmt.Sprintf("Rounds: %d; in each, every workload through all targets in turn, pgbench %d s each (scale %d), COPY %d MB in rows of %d bytes; churn is a new connection for every select, without a password and with SCRAM-SHA-256",
			o.rounds, o.seconds, o.scale, o.copy/1_000_000, rowSize),
		"Client, proxy and server share the machine. Numbers are **medians** of the rounds, with the least and the most. CPU is what the proxy's own process took (user and system), per transaction or per GB",
		fmt.Sprintf("p99 is of the %.0f%% of transactions that pgbench logged, drawn by lot, of each run; writing them costs all targets the same. pgbench does not count the time to connect in it, so churn has none", 100*sampled),
	}
	for _, t := range targets {
		facts = append(facts, t.name+": "+t.version)
	}
	printHead("Throughput and cost", facts...)
	fmt.Println("| workload, clients | target | rate | p99, ms | CPU of the proxy |")
	fmt.Println("|---|---|---:|---:|---:|")
	for i, w := range works {
		name := w.name
		for j, t := range targets {
			rate, latency, cpu := results[i][j].cells(w)
			if n := len(results[i][j].failed); n > 0 {
				rate = strings.TrimSpace(fmt.Sprintf("%s (%d of %d failed)", rate, n, o.rounds))
			}
			fmt.Printf("| %s | %s | %s | %s | %s |\n", name, t.name, rate, latency, cpu)
			name = ""
		}
	}
	fmt.Println()
	for i, w := range works {
		for j, t := range targets {
			if r := results[i][j]; len(r.failed) > 0 {
				fmt.Printf("- Failed: %s through %s: %v\n", w.name, t.name, r.failed[0])
			}
		}
	}
}

// cells are the columns of a row that hold numbers.
func (r series) cells(w workload) (rate, latency, cpu string) {
	if len(r.runs) == 0 {
		return "", "", ""
	}
	rate = spread(r.values(rateOf), 1, "%.0f") + " tps"
	if w.bytes {
		rate = spread(r.values(rateOf), 1e-6, "%.0f") + " MB/s"
	}
	if r.runs[0].p99 > 0 {
		latency = spread(r.values(p99Of), 1, "%.3f")
	}
	switch {
	case median(r.values(cpuOf)) == 0: // nothing stands between
	case w.bytes:
		cpu = spread(r.values(cpuOf), 1e9, "%.2f") + " s/GB"
	default:
		cpu = spread(r.values(cpuOf), 1e6, "%.1f") + " µs"
	}
	return rate, latency, cpu
}

func rateOf(r sample) float64 { return r.rate }
func p99Of(r sample) float64  { return r.p99 }
func cpuOf(r sample) float64  { return r.cpu }

// failures is an error if anything failed.
func failures(o options, works []workload, targets []*target, results [][]series) (err error) {
	for i, w := range works {
		for j, t := range targets {
			if n := len(results[i][j].failed); n > 0 {
				err = errors.Join(err, fmt.Errorf("%s through %s failed in %d of %d rounds", w.name, t.name, n, o.rounds))
			}
		}
	}
	return err
}
