package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// workload is what a client does through a target.
type workload struct {
	name  string
	bytes bool // are what is counted, not transactions
	run   func(ctx context.Context, o options, s *server, port int) (work, error)
}

// work is what one run got done.
type work struct {
	count float64 // transactions or bytes
	rate  float64 // of them, per second
	p99   float64 // milliseconds, of the latency; 0 where there is none
}

func workloads() []workload {
	var all []workload
	for _, mode := range []string{"simple", "prepared"} {
		for _, clients := range []int{1, 8, 64} {
			all = append(all, bench(fmt.Sprintf("select %s %d", mode, clients), connString, clients, "-S", "-M", mode))
		}
	}
	return append(all,
		bench("tpcb 8", connString, 8),
		bench("churn 8", connString, 8, "-S", "-C"),
		bench("churn scram 8", scramString, 8, "-S", "-C"),
		workload{"copy out", true, copyOut},
		workload{"copy in", true, copyIn},
	)
}

// chosen returns the workloads whose names begin with one of prefixes; all if
// there are none.
func chosen(all []workload, prefixes []string) (some []workload) {
	for _, w := range all {
		for _, p := range prefixes {
			if strings.HasPrefix(w.name, p) {
				some = append(some, w)
				break
			}
		}
	}
	if len(prefixes) == 0 {
		return all
	}
	return some
}

// sampled is the part of its transactions that pgbench logs. All of them would
// take a percent of the machine from the faster targets.
const sampled = 0.25

// bench is a run of pgbench by so many clients, which connect as conn says.
func bench(name string, conn func(port int) string, clients int, flags ...string) workload {
	return workload{name: name, run: func(ctx context.Context, o options, s *server, port int) (w work, err error) {
		logs := path.Join(s.logs, "pgbench")
		args := append([]string{"-n", "-T", strconv.Itoa(o.seconds), "-c", strconv.Itoa(clients), "-j", strconv.Itoa(min(clients, 2)),
			"--log", "--log-prefix", logs, "--sampling-rate", fmt.Sprint(sampled)}, flags...)
		// Whatever hangs is a failure, not the end of the benchmark. In the
		// container pgbench then lives on until the server goes, but it waits.
		ctx, cancel := context.WithTimeout(ctx, time.Duration(o.seconds)*time.Second+30*time.Second)
		defer cancel()
		out, err := command(s.pgbench(ctx, append(args, conn(port))...))
		// A file per thread; also what a run that failed has left is taken away.
		logged, logErr := command(s.shell(ctx, `cat "$0".* && rm "$0".*`, logs))
		if err != nil {
			return w, err
		}
		if w, err = parsePgbench(out); err != nil || slices.Contains(flags, "-C") {
			return w, err
		}
		if logErr == nil {
			w.p99, logErr = parseLog(logged)
		}
		return w, logErr
	}}
}

// parseLog reads what pgbench logged of single transactions and returns the 99th
// percentile of their latency, in milliseconds.
func parseLog(out string) (float64, error) {
	var all []float64
	for line := range strings.Lines(out) {
		fields := strings.Fields(line) // client, transaction, microseconds, script, time
		if len(fields) < 6 {
			return 0, fmt.Errorf("pgbench's log has a line %q", line)
		}
		us, err := strconv.ParseFloat(fields[2], 64)
		if err != nil {
			return 0, fmt.Errorf("pgbench's log has a line %q: %w", line, err)
		}
		all = append(all, us/1000)
	}
	if len(all) == 0 {
		return 0, errors.New("pgbench's log is empty")
	}
	return p99(all), nil
}

var (
	processed = regexp.MustCompile(`number of transactions actually processed: (\d+)`)
	failed    = regexp.MustCompile(`number of failed transactions: (\d+)`)
	tps       = regexp.MustCompile(`(?m)^tps = ([\d.]+)`)
)

// parsePgbench reads pgbench's report. A transaction that failed makes the run a
// failure: nothing here should make one fail.
func parsePgbench(out string) (w work, err error) {
	number := func(re *regexp.Regexp) (n float64) {
		m := re.FindStringSubmatch(out)
		if m == nil {
			err = fmt.Errorf("pgbench's report has no %q", re)
			return 0
		}
		n, _ = strconv.ParseFloat(m[1], 64) // the pattern lets only numbers through
		return n
	}
	w = work{count: number(processed), rate: number(tps)}
	if n := number(failed); n > 0 {
		return w, fmt.Errorf("%.0f transactions failed", n)
	}
	return w, err
}

// rowSize is the length of each row of a COPY, with its newline.
const rowSize = 1000

// copyOut reads rows that the server makes up, so that no disk is measured.
func copyOut(ctx context.Context, o options, _ *server, port int) (work, error) {
	sql := fmt.Sprintf("COPY (SELECT repeat('x', %d) FROM generate_series(1, %d)) TO STDOUT", rowSize-1, o.copy/rowSize)
	return timeCopy(ctx, port, func(ctx context.Context, c *pgx.Conn) (n int64, err error) {
		var got counter
		_, err = c.PgConn().CopyTo(ctx, &got, sql)
		return int64(got), err
	})
}

// copyIn sends rows that the server reads and leaves out, for the same reason.
func copyIn(ctx context.Context, o options, _ *server, port int) (work, error) {
	return timeCopy(ctx, port, func(ctx context.Context, c *pgx.Conn) (int64, error) {
		rows := io.LimitReader(&endless{}, o.copy/rowSize*rowSize)
		_, err := c.PgConn().CopyFrom(ctx, rows, "COPY bench_sink FROM STDIN WHERE false")
		return o.copy / rowSize * rowSize, err
	})
}

// timeCopy measures the time of a COPY without that of its connection.
func timeCopy(ctx context.Context, port int, do func(context.Context, *pgx.Conn) (int64, error)) (work, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, connString(port))
	if err != nil {
		return work{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	start := time.Now()
	n, err := do(ctx, conn)
	return work{count: float64(n), rate: float64(n) / time.Since(start).Seconds()}, err
}

// counter counts what is written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

// endless is a text of rows without an end.
type endless struct{ at int }

var manyRows = strings.Repeat(strings.Repeat("x", rowSize-1)+"\n", 64)

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, manyRows[e.at:])
	e.at = (e.at + n) % len(manyRows)
	return n, nil
}
