package main

import (
	"errors"
	"fmt"
	"slices"
)

// sample is what one run of a workload got done, and what it cost.
type sample struct {
	round int
	work
	cpu float64 // seconds of the proxy per transaction or byte; 0 where there is no proxy
}

// series is what was measured of one workload through one target.
type series struct {
	runs   []sample
	failed []error
}

// measure adds what do gets done to r, with what t computed meanwhile.
func (r *series) measure(round int, t *target, do func() (work, error)) error {
	done, err := costed(t, do)
	done.round = round
	if err != nil {
		r.failed = append(r.failed, err)
		return err
	}
	r.runs = append(r.runs, done)
	return nil
}

// costed adds what t computed to what do got done.
func costed(t *target, do func() (work, error)) (r sample, err error) {
	before, err := t.cpu()
	if err != nil {
		return r, err
	}
	if r.work, err = do(); err != nil {
		return r, err
	}
	after, err := t.cpu()
	if err == nil && r.count == 0 {
		err = errors.New("nothing was done")
	}
	r.cpu = (after - before).Seconds() / r.count
	return r, err
}

// values returns one quantity of every run.
func (r series) values(of func(sample) float64) (all []float64) {
	for _, one := range r.runs {
		all = append(all, of(one))
	}
	return all
}

// ratios returns one quantity of every run divided by that of other in the same
// round: what else the machine did then has hit both. A round in which either
// has nothing to show is left out.
func (r series) ratios(other series, of func(sample) float64) (all []float64) {
	for _, a := range r.runs {
		for _, b := range other.runs {
			if a.round == b.round && of(a) > 0 && of(b) > 0 {
				all = append(all, of(a)/of(b))
			}
		}
	}
	return all
}

// spread is a cell of a table: the median of values, the least and the most.
// One value stands alone; it is empty if there are none.
func spread(values []float64, scale float64, format string) string {
	if len(values) == 0 {
		return ""
	}
	number := func(v float64) string { return fmt.Sprintf(format, v*scale) }
	if len(values) == 1 {
		return number(values[0])
	}
	return fmt.Sprintf("**%s** %s – %s", number(median(values)), number(slices.Min(values)), number(slices.Max(values)))
}

// median returns the middle of values, of which there is at least one.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// p99 returns the value that 99 of 100 do not exceed; 0 if there are none.
func p99(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[(len(sorted)*99+99)/100-1]
}
