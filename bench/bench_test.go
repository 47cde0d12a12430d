package main

import (
	"errors"
	"io"
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
	if want := (work{count: 58479, rate: 59002.112731, latency: 0.136}); err != nil || got != want {
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

func TestAFailureIsShownInTheTable(t *testing.T) {
	r := series{runs: []work{{count: 10, rate: 1000, latency: 0.5}}, cpu: []float64{25e-6}, failed: []error{errors.New("refused")}}
	rate, spread, latency, cpu := r.cells(workload{}, &target{proc: &process{}})
	if rate != "1000 tps" || spread != "1000 – 1000" || latency != "0.500 ms" || cpu != "25.0 µs" {
		t.Errorf("got %q %q %q %q", rate, spread, latency, cpu)
	}
	rate, _, _, cpu = series{failed: r.failed}.cells(workload{}, &target{})
	if rate != "" || cpu != "" {
		t.Errorf("a target that never worked has numbers: %q %q", rate, cpu)
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
