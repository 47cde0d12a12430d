package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"pgfailproxy/admin"
)

// world is a primary pg1, its standby pg2, and the proxy in front of them.
type world interface {
	// renew makes everything as new: pg1 is served and pg2 streams from it.
	renew(ctx context.Context) error
	// strike does a fault to pg1 and returns when it is done.
	strike(ctx context.Context, fault string) error
	faults() []string
	conn() string // how a client connects to the proxy
	status(ctx context.Context) (admin.Status, error)
	close() error
	about() string // one line
}

// outage is what one fault did to a writer.
type outage struct {
	total   time.Duration // from the fault to the next acknowledged write
	silence time.Duration // without an acknowledged write, as the writer saw it
	acting  time.Duration // that the command took which makes the fault
	parts   []admin.Phase // where total went, in order
	rows    int           // acknowledged, before and after
	missing int           // of these not on the new primary
}

// outageLimit is how long a write is waited for before a run counts as failed.
const outageLimit = time.Minute

// failover measures the outage of writes after each fault, and prints one table.
func failover(ctx context.Context, o options) (err error) {
	newWorld := newStackWorld
	if o.local {
		newWorld = newLocalWorld
	}
	w, err := newWorld(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	faults := o.faults
	if len(faults) == 0 {
		faults = w.faults()
	}
	for _, f := range faults {
		if !slices.Contains(w.faults(), f) {
			return fmt.Errorf("there is no fault %q: %s are there", f, strings.Join(w.faults(), ", "))
		}
	}
	results := make([][]outage, len(faults))
	failures := make([][]error, len(faults))
	for n := range o.runs { // all faults in turn: noise hits all alike
		for i, fault := range faults {
			out, err := measureOutage(ctx, w, fault)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				progress("%s, run %d of %d: %v", fault, n+1, o.runs, err)
				failures[i] = append(failures[i], err)
				continue
			}
			progress("%s, run %d of %d: %.3f s", fault, n+1, o.runs, out.total.Seconds())
			results[i] = append(results[i], out)
		}
	}
	printOutages(w, faults, results, failures)
	if all := slices.Concat(failures...); len(all) > 0 {
		return fmt.Errorf("%d runs failed", len(all))
	}
	return nil
}

// measureOutage makes a world, strikes it and waits for the writer.
func measureOutage(ctx context.Context, w world, fault string) (out outage, err error) {
	if err := w.renew(ctx); err != nil {
		return out, fmt.Errorf("make the servers new: %w", err)
	}
	if err := await(ctx, outageLimit, func(ctx context.Context) error { return ready(ctx, w) }); err != nil {
		return out, fmt.Errorf("wait for primary and standby: %w", err)
	}
	if _, err := query(ctx, w.conn(), "CREATE TABLE bench_ledger (id bigint PRIMARY KEY)"); err != nil {
		return out, err
	}
	writer, err := startWriter(ctx, w.conn())
	if err != nil {
		return out, err
	}
	defer writer.stop()
	// The fault comes at any moment between two questions of the proxy.
	select {
	case <-time.After(time.Second + rand.N(time.Second)):
	case <-ctx.Done():
		return out, context.Cause(ctx)
	}
	if rows, _, _ := writer.seen(); rows == 0 {
		return out, errors.New("no write was acknowledged before the fault")
	}
	start := time.Now()
	if err := w.strike(ctx, fault); err != nil {
		return out, fmt.Errorf("make the fault: %w", err)
	}
	out.acting = time.Since(start)
	select {
	case <-writer.moved:
	case <-time.After(outageLimit):
		status, err := w.status(ctx)
		return out, errors.Join(fmt.Errorf("no write was acknowledged within %v; the proxy: %s, %s", outageLimit, status.State, status.Why()), err)
	case <-ctx.Done():
		return out, context.Cause(ctx)
	}
	writer.stop()
	_, last, again := writer.seen()
	out.total, out.silence = again.Sub(start), again.Sub(last)
	if out.parts, err = parts(ctx, w, start, again); err != nil {
		return out, err
	}
	out.rows = len(writer.acked)
	out.missing, err = writer.missing(ctx, w.conn())
	return out, err
}

// ready says why w is not in the state that a run begins with.
func ready(ctx context.Context, w world) error {
	s, err := w.status(ctx)
	if err != nil {
		return err
	}
	if !s.Served() || s.Primary != "pg1" {
		return errors.New(s.Why())
	}
	for _, m := range s.Members {
		if m.Name == "pg2" && m.Streaming && m.Replayed >= m.LSN {
			return nil
		}
	}
	return errors.New("pg2 is not streaming")
}

// parts says where the time between the fault and the write went, from the
// proxy's own report. Both have one clock.
func parts(ctx context.Context, w world, start, again time.Time) (all []admin.Phase, err error) {
	var report admin.Failover
	err = await(ctx, 5*time.Second, func(ctx context.Context) error {
		s, err := w.status(ctx)
		if err == nil && len(s.Failovers) == 0 {
			err = errors.New("the proxy reports no failover")
		}
		if err == nil {
			report = s.Failovers[0]
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	unseen := report.Started.Sub(start).Seconds()
	all = append([]admin.Phase{{Name: "unseen", Seconds: unseen}}, report.Phases...)
	rest := again.Sub(start).Seconds()
	for _, p := range all {
		rest -= p.Seconds
	}
	return append(all, admin.Phase{Name: "client", Seconds: rest}), nil
}

func printOutages(w world, faults []string, results [][]outage, failures [][]error) {
	printHead("Time from a fault to the next acknowledged write", w.about(),
		fmt.Sprintf("One writer in a tight loop; leaves a statement after %v, connects again after %v, waits up to %v for a connection. It hears of a hang from its own time-out, or from the proxy, which ends its session",
			statementTimeout, backoff, connectTimeout),
		"out: from the start of the command that makes the fault to the first write that is acknowledged on the new timeline; least, median, most. silence: without an acknowledged write, as the writer saw it, median. command: how long the command took, median",
		"Where the time went, medians, in ms: unseen is until the proxy's first sign of trouble (a connection that breaks, or the sending of a question that is never answered); then its phases; client is from its last phase to the acknowledgement",
		"missing: acknowledged rows that are not on the new primary. Durability is asynchronous: what the old primary had not sent yet is lost with it")
	var names []string // of parts, in their order
	for _, out := range slices.Concat(results...) {
		for i, p := range out.parts {
			if !slices.Contains(names, p.Name) {
				names = slices.Insert(names, min(i, len(names)), p.Name)
			}
		}
	}
	fmt.Printf("| fault | runs | out, s | silence, s | command, s | %s | rows acknowledged | missing |\n", strings.Join(names, " | "))
	fmt.Println("|---|---:|---:|---:|---:|" + strings.Repeat("---:|", len(names)+2))
	for i, fault := range faults {
		printOutage(fault, names, results[i], len(failures[i]))
	}
	fmt.Println()
	for i, fault := range faults {
		for _, err := range failures[i] {
			fmt.Printf("- Failed, %s: %v\n", fault, err)
		}
	}
}

// printOutage prints the row of one fault.
func printOutage(fault string, names []string, runs []outage, failed int) {
	count := fmt.Sprint(len(runs))
	if failed > 0 {
		count += fmt.Sprintf(" (%d failed)", failed)
	}
	if len(runs) == 0 {
		fmt.Printf("| %s | %s | | | |%s |\n", fault, count, strings.Repeat(" |", len(names)+1))
		return
	}
	of := func(value func(outage) float64) (all []float64) {
		for _, r := range runs {
			all = append(all, value(r))
		}
		return all
	}
	total := of(func(r outage) float64 { return r.total.Seconds() })
	rows, missing := 0, 0
	for _, r := range runs {
		rows, missing = rows+r.rows, missing+r.missing
	}
	fmt.Printf("| %s | %s | %.2f / **%.2f** / %.2f | %.2f | %.2f |", fault, count,
		slices.Min(total), median(total), slices.Max(total),
		median(of(func(r outage) float64 { return r.silence.Seconds() })),
		median(of(func(r outage) float64 { return r.acting.Seconds() })))
	for _, name := range names {
		fmt.Printf(" %.0f |", 1000*median(of(func(r outage) (sum float64) {
			for _, p := range r.parts {
				if p.Name == name {
					sum += p.Seconds
				}
			}
			return sum
		})))
	}
	fmt.Printf(" %d | %d |\n", rows, missing)
}

// makeDir makes a folder for a part of the run that other users may enter.
func makeDir(parent, pattern string) (string, error) {
	dir, err := os.MkdirTemp(parent, pattern)
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	return dir, err
}
