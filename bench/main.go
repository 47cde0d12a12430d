// Command bench measures the proxy: throughput and cost beside its peers, what a
// session costs as their number grows, and the time for which writes are out
// after a fault. It prints what it measured,
// as Markdown on standard output; what it is doing goes to standard error.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

const use = `Usage: bench/run [throughput] [sessions] [failover] [flags]

throughput  pgbench, connection churn and COPY through each target, interleaved
            in rounds, with the CPU time of the proxy's process
sessions    memory for each idle session and CPU per transaction through each
            proxy, as the number of sessions grows, against a server that does
            nothing
failover    time from a fault of the primary to the next acknowledged write, in
            containers; with --local on processes of this machine

All when none is named. Run it from the root of the repository.

Flags:
`

// options are what the flags say.
type options struct {
	rounds  int
	seconds int      // of one pgbench run
	copy    int64    // bytes
	scale   int      // of pgbench's tables
	only    []string // workloads, by the beginning of their names; empty means all
	targets []string // empty means all
	counts  []int    // of sessions, growing
	growths int      // of the sessions, through each proxy
	settle  time.Duration
	runs    int      // per fault
	faults  []string // empty means all
	local   bool

	profiles string // a folder; empty: no profiles
	proxy    string // the program
	dir      string // for this run; removed at the end
}

// quickly is what --quick means, for flags that are not given.
var quickly = map[string]string{"rounds": "1", "seconds": "1", "scale": "1", "copy-mb": "50", "runs": "1",
	"sessions": "1,10,100,1000", "growths": "1", "settle": "1s",
	"only": "select simple 8,tpcb,churn,copy"}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends at once
	// When nobody reads what is printed, what was started is still removed.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	if len(os.Args) == 3 && os.Args[1] == fakeCommand {
		progress("%v", fakePostgres(os.Args[2]))
		os.Exit(1)
	}
	err := run(ctx, os.Args[1:])
	switch {
	case err == nil || errors.Is(err, pflag.ErrHelp):
	case ctx.Err() != nil:
		progress("interrupted: %v", err)
		os.Exit(130)
	default:
		progress("%v", err)
		os.Exit(1)
	}
}

// check refuses what cannot be measured.
func (o options) check() error {
	if o.rounds < 1 || o.runs < 1 || o.copy < 1 || o.seconds < 1 || o.scale < 1 || o.growths < 1 {
		return errors.New("rounds, seconds, scale, copy-mb, growths and runs are at least 1")
	}
	if n := len(o.counts); n == 0 || o.counts[0] < 1 || o.counts[n-1] > maxSessions || !slices.IsSorted(o.counts) {
		return fmt.Errorf("sessions grow, from at least 1 to at most %d", maxSessions)
	}
	if o.profiles != "" {
		if _, err := exec.LookPath("perf"); err != nil {
			return fmt.Errorf("%w: profiles are made by perf, of the package linux-perf", err)
		}
		return os.MkdirAll(o.profiles, 0o755)
	}
	return nil
}

// parse returns what args ask for, and the benchmarks that they name.
func parse(args []string) (o options, benches []string, err error) {
	fs := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.Usage = func() { fmt.Fprint(os.Stderr, use+fs.FlagUsages()) }
	fs.IntVar(&o.rounds, "rounds", 4, "throughput: rounds through all workloads and targets")
	fs.IntVar(&o.seconds, "seconds", 2, "throughput, sessions: length of one run")
	fs.IntVar(&o.scale, "scale", 10, "throughput: of pgbench's tables")
	megabytes := fs.Int64("copy-mb", 500, "throughput: megabytes of one COPY")
	fs.StringSliceVar(&o.only, "only", nil, "throughput: workloads, by the beginning of their names, such as \"select simple,copy\"")
	fs.StringSliceVar(&o.targets, "targets", nil, "throughput, sessions: of direct, haproxy, pgbouncer, pgfailproxy")
	fs.StringVar(&o.profiles, "profile", "", "throughput, sessions: a folder for profiles of the proxies, made by perf, which costs some percent")
	fs.IntSliceVar(&o.counts, "sessions", []int{1, 10, 100, 1000, 10_000}, "sessions: how many, growing")
	fs.IntVar(&o.growths, "growths", 2, "sessions: how often they are made to grow through each proxy")
	fs.DurationVar(&o.settle, "settle", 2*time.Second, "sessions: how long nothing happens before memory is measured")
	fs.IntVar(&o.runs, "runs", 3, "failover: runs per fault")
	fs.StringSliceVar(&o.faults, "faults", nil, "failover: of kill, stop, pause, disconnect")
	fs.BoolVar(&o.local, "local", false, "failover: on processes of this machine, without containers")
	quick := fs.Bool("quick", false, "look whether it works: a second of a few workloads, one run per fault; the numbers mean little")
	if err := fs.Parse(args); err != nil {
		return o, nil, err
	}
	if *quick {
		for name, value := range quickly {
			if !fs.Changed(name) {
				fs.Set(name, value) // each is well formed
			}
		}
	}
	o.copy = *megabytes * 1_000_000
	if benches = fs.Args(); len(benches) == 0 {
		benches = []string{"throughput", "sessions", "failover"}
	}
	return o, benches, o.check()
}

func run(ctx context.Context, args []string) (err error) {
	o, benches, err := parse(args)
	if err != nil {
		return err
	}
	if o.proxy, err = filepath.Abs("bin/pgfailproxy"); err != nil {
		return err
	}
	if _, err := os.Stat(o.proxy); err != nil {
		return fmt.Errorf("%w: call bench/run, which builds it", err)
	}
	if o.dir, err = os.MkdirTemp("", "pgfailproxy-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	// PgBouncer and a local PostgreSQL do not run as root and must get through.
	if err := os.Chmod(o.dir, 0o755); err != nil {
		return err
	}
	for _, name := range benches {
		switch name {
		case "throughput":
			err = throughput(ctx, o)
		case "sessions":
			err = sessions(ctx, o)
		case "failover":
			err = failover(ctx, o)
		default:
			err = fmt.Errorf("there is no benchmark %q: throughput, sessions and failover are there", name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// progress says on standard error what is going on.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
}

// printHead prints what the numbers below it depend on.
func printHead(title string, facts ...string) {
	fmt.Printf("## %s\n\n", title)
	facts = append([]string{
		"Date: " + time.Now().UTC().Format("2006-01-02 15:04 MST"),
		"Machine: " + machine(),
		"pgfailproxy: " + strings.TrimSpace(firstLine("git", "describe", "--always", "--dirty")) + ", built with " + runtime.Version(),
	}, facts...)
	repeat := "bench/run"
	for _, arg := range os.Args[1:] {
		if strings.Contains(arg, " ") {
			arg = strconv.Quote(arg)
		}
		repeat += " " + arg
	}
	for _, f := range append(facts, "To repeat: `"+repeat+"`") {
		fmt.Printf("- %s\n", f)
	}
	fmt.Println()
}

// machine describes this one in a line.
func machine() string {
	model := "unknown processor"
	info, _ := os.ReadFile("/proc/cpuinfo") // not there: unknown
	for line := range strings.Lines(string(info)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	return fmt.Sprintf("%s, %d cores, %s", model, runtime.NumCPU(), runtime.GOOS)
}

// firstLine returns the first line of what a program prints; empty if it fails.
func firstLine(program string, args ...string) string {
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}
