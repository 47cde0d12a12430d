package main

import (
	"fmt"
	"slices"
	"strings"
)

// goal is what we want to be beside a peer.
type goal struct {
	what      string
	workloads string // the beginning of their names
	of        func(sample) float64
	limit     float64 // of the ratio, ours to the peer's
	least     bool    // is limit the least that is wanted; else it is the most
}

// peer is whom pgfailproxy is compared with: what somebody would use who wants
// only bytes to be moved.
const peer, self = "haproxy", "pgfailproxy"

var goals = []goal{
	{"CPU per transaction", "select", cpuOf, 0.85, false},
	{"rate", "select", rateOf, 1, true},
	{"p99", "select", p99Of, 1, false},
	{"CPU per GB", "copy", cpuOf, 1, false},
	{"rate", "churn", rateOf, 1, true},
}

// verdict says what became of the goal, judged by the median of the rounds.
func (g goal) verdict(ratios []float64) string {
	if len(ratios) == 0 {
		return "not measured"
	}
	m := median(ratios)
	if g.least && m >= g.limit || !g.least && m <= g.limit {
		return "reached"
	}
	return "**missed**"
}

func (g goal) wanted() string {
	if g.least {
		return fmt.Sprintf("≥ %.2f", g.limit)
	}
	return fmt.Sprintf("≤ %.2f", g.limit)
}

// printGoals compares us with the peer, round by round, if both were measured.
func printGoals(works []workload, targets []*target, results [][]series) {
	find := func(name string) int {
		return slices.IndexFunc(targets, func(t *target) bool { return t.name == name })
	}
	ours, theirs := find(self), find(peer)
	if ours < 0 || theirs < 0 {
		return
	}
	fmt.Printf("Goals: %s to %s, in each round\n\n", self, peer)
	fmt.Println("| goal | workload, clients | ratio | wanted | |")
	fmt.Println("|---|---|---:|---:|---|")
	for _, g := range goals {
		what := g.what
		for i, w := range works {
			if !strings.HasPrefix(w.name, g.workloads) {
				continue
			}
			ratios := results[i][ours].ratios(results[i][theirs], g.of)
			fmt.Printf("| %s | %s | %s | %s | %s |\n", what, w.name, spread(ratios, 1, "%.2f"), g.wanted(), g.verdict(ratios))
			what = ""
		}
	}
	fmt.Println()
}
