package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

const report = `pgbench (18.6)
transaction type: <builtin: select only>
number of clients: 8
number of transactions actually processed: 58479
number of failed transactions: 0 (0.000%)
latency average = 0.136 ms
initial connection time = 10.975 ms
tps = 59002.112731 (without initial connection time)
`

func TestPgbenchReportIsRead(t *testing.T) {
	got, err := parsePgbench(report)
	if want := (work{count: 58479, rate: 59002.112731}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestARunThatFailedIsNoResult(t *testing.T) {
	for _, bad := range []string{
		"",
		strings.Replace(report, "tps = ", "tps: ", 1),
		strings.Replace(report, "failed transactions: 0", "failed transactions: 3", 1),
	} {
		if got, err := parsePgbench(bad); err == nil {
			t.Errorf("%q was taken for %+v", bad, got)
		}
	}
}

func TestTheSlowestOfALogAreFound(t *testing.T) {
	var log strings.Builder
	for i := range 200 {
		fmt.Fprintf(&log, "%d 7 %d 0 1764043200 5000\n", i%8, 1000+i)
	}
	if got, err := parseLog(log.String()); err != nil || got != 1.197 { // two are slower
		t.Errorf("got %v, %v, want 1.197 ms", got, err)
	}
	for _, bad := range []string{"", "0 7 failed 0 1764043200 5000\n", "pgbench: error\n"} {
		if got, err := parseLog(bad); err == nil {
			t.Errorf("%q was taken for %v", bad, got)
		}
	}
}

func TestATableShowsMediansAndTheirSpread(t *testing.T) {
	r := series{runs: []sample{
		{0, work{count: 10, rate: 1000, p99: 0.5}, 25e-6}, {1, work{count: 10, rate: 3000, p99: 0.7}, 35e-6}, {2, work{count: 10, rate: 1100, p99: 0.4}, 30e-6}}}
	rate, latency, cpu := r.cells(workload{})
	if rate != "**1100** 1000 – 3000 tps" || latency != "**0.500** 0.400 – 0.700" || cpu != "**30.0** 25.0 – 35.0 µs" {
		t.Errorf("got %q %q %q", rate, latency, cpu)
	}
	r = series{runs: []sample{{0, work{count: 1e9, rate: 5e8}, 0}}}
	if rate, latency, cpu := r.cells(workload{bytes: true}); rate != "500 MB/s" || latency != "" || cpu != "" {
		t.Errorf("a direct COPY has %q %q %q", rate, latency, cpu)
	}
	if rate, latency, cpu := (series{failed: []error{io.EOF}}).cells(workload{}); rate+latency+cpu != "" {
		t.Errorf("a target that never worked has numbers: %q %q %q", rate, latency, cpu)
	}
}

func TestARunThatFailsIsRecordedAndNothingIsMeasuredOfIt(t *testing.T) {
	var r series
	for round, do := range []func() (work, error){
		func() (work, error) { return work{count: 5}, io.EOF },
		func() (work, error) { return work{}, nil }, // nothing was done
		func() (work, error) { return work{count: 5, rate: 2}, nil },
	} {
		if err := r.measure(round, &target{}, do); (err == nil) != (round == 2) {
			t.Errorf("round %d: %v", round, err)
		}
	}
	if len(r.failed) != 2 || len(r.runs) != 1 || r.runs[0].round != 2 || r.runs[0].rate != 2 {
		t.Errorf("got %+v", r)
	}
}

func TestOursAndTheirsAreComparedRoundByRound(t *testing.T) {
	ours := series{runs: []sample{{round: 0, cpu: 8}, {round: 2, cpu: 30}, {round: 3, cpu: 1}}} // failed in round 1
	theirs := series{runs: []sample{{round: 0, cpu: 10}, {round: 1, cpu: 1}, {round: 2, cpu: 40}, {round: 3}}}
	if got := ours.ratios(theirs, cpuOf); !slices.Equal(got, []float64{0.8, 0.75}) {
		t.Errorf("got %v, want those of rounds 0 and 2", got)
	}
}

func TestAGoalIsJudgedByTheMedian(t *testing.T) {
	most, least := goal{limit: 0.85}, goal{limit: 1, least: true}
	for _, c := range []struct {
		goal   goal
		ratios []float64
		want   string
	}{
		{most, []float64{0.8, 0.85, 2}, "reached"},
		{most, []float64{0.8, 0.86, 0.86}, "**missed**"},
		{least, []float64{0.5, 1, 1.1}, "reached"},
		{least, []float64{0.5, 0.99, 1.1}, "**missed**"},
		{least, nil, "not measured"},
	} {
		if got := c.goal.verdict(c.ratios); got != c.want {
			t.Errorf("%s of %v: %s, want %s", c.goal.wanted(), c.ratios, got, c.want)
		}
	}
}

func TestWorkloadsAreChosenByTheBeginningOfTheirNames(t *testing.T) {
	if got := chosen(workloads(), []string{"select simple", "copy"}); len(got) != 5 {
		t.Errorf("got %d workloads, want 3 selects and 2 copies", len(got))
	}
	if got, all := chosen(workloads(), nil), workloads(); len(got) != len(all) {
		t.Errorf("got %d of %d workloads without a choice", len(got), len(all))
	}
	if got := chosen(workloads(), []string{"nothing"}); len(got) != 0 {
		t.Errorf("got %d workloads of an unknown name", len(got))
	}
}

func TestMedian(t *testing.T) {
	for want, values := range map[float64][]float64{3: {3}, 2: {9, 1, 2}, 2.5: {1, 9, 3, 2}} {
		if got := median(values); got != want {
			t.Errorf("median of %v is %v, want %v", values, got, want)
		}
	}
}

func TestP99(t *testing.T) {
	var values []float64
	for n := range 1000 {
		values = append(values, float64((n*7)%1000+1)) // 1 to 1000 in disorder
	}
	for want, values := range map[float64][]float64{0: nil, 3: {3}, 9: {1, 9, 3}, 990: values} {
		if got := p99(values); got != want {
			t.Errorf("p99 of %d values is %v, want %v", len(values), got, want)
		}
	}
}

func TestRowsOfACopyAreWhole(t *testing.T) {
	data, err := io.ReadAll(io.LimitReader(&endless{}, 200*rowSize))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if len(line) != rowSize || !strings.HasSuffix(line, "x\n") {
			t.Fatalf("a row has %d bytes, want %d", len(line), rowSize)
		}
	}
}

func TestTheTimeOfAProcessIsReadWhileItComputes(t *testing.T) {
	p, err := startProcess(t.TempDir(), "busy", "/bin/sh", "-c", "while :; do :; done")
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(tick) {
		got, err := p.cpu()
		if err != nil {
			t.Fatal(err)
		}
		if got >= 2*tick {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("after 10 s it has computed for %v", got)
		}
	}
	p.stop()
	if got, err := p.cpu(); err == nil {
		t.Errorf("a process that has ended has computed for %v", got)
	}
}
