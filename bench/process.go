package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// process is a program that was started for the measurement.
type process struct {
	cmd  *exec.Cmd
	log  string        // the file that holds what it prints
	done chan struct{} // closed when it has ended
}

// startProcess starts a program whose output goes to name.log in dir. The
// caller calls stop.
func startProcess(dir, name, path string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(path, args...), log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	out, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the program has its own
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go p.wait()
	return p, nil
}

func (p *process) wait() {
	defer close(p.done)
	p.cmd.Wait() // how it ended is in its log
}

// stop kills the program: nothing that it has is wanted any more.
func (p *process) stop() {
	p.cmd.Process.Kill()
	<-p.done
}

// tail returns the end of what it printed.
func (p *process) tail() string {
	out, _ := os.ReadFile(p.log) // not readable: nothing to show
	return string(bytes.TrimSpace(out[max(0, len(out)-2000):]))
}

// tick is the unit of times in /proc/PID/stat: USER_HZ is 100 on every Linux
// that Go runs on.
const tick = 10 * time.Millisecond

// cpu returns the time that all threads of the program have computed so far, in
// the program and in the kernel on its behalf, together with that of children
// that have ended. Its grain is a tick.
func (p *process) cpu() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("the proxy is gone: %w", err)
	}
	// The name in parentheses may hold anything; count from its end. The third
	// field of the line is then the first; utime to cstime are 14 to 17.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 15 || fields[0][0] == 'Z' {
		return 0, fmt.Errorf("the proxy is gone: process %d has ended", p.cmd.Process.Pid)
	}
	var sum time.Duration
	for _, f := range fields[11:15] {
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the times of process %d: %w", p.cmd.Process.Pid, err)
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}

// resident returns how much memory of the program is in RAM, in bytes, counted
// page by page: /proc/PID/statm is allowed to be late.
func (p *process) resident() (int64, error) {
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("the proxy is gone: %w", err)
	}
	for line := range strings.Lines(string(rollup)) {
		if rest, ok := strings.CutPrefix(line, "Rss:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no resident memory: it has ended", p.cmd.Process.Pid)
}

// connString is how a client reaches the given port. TLS is off for everybody:
// only some of the targets could end it.
func connString(port int) string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres sslmode=disable connect_timeout=10", port)
}

// scramString is connString for the role that the server asks for its password.
func scramString(port int) string {
	return strings.Replace(connString(port), "user=postgres", "user="+scramRole+" password="+scramPassword, 1)
}

// awaitPostgres waits until a query is answered on port.
func awaitPostgres(ctx context.Context, port int) error {
	return await(ctx, 30*time.Second, func(ctx context.Context) error {
		_, err := query(ctx, connString(port), "SELECT 1")
		return err
	})
}

// await tries until ok returns nil. When limit is over the error is ok's last.
func await(ctx context.Context, limit time.Duration, ok func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := ok(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// query runs statements over a connection of its own and returns the first cell
// of the last one's result; empty if there is none.
func query(ctx context.Context, conn, sql string) (string, error) {
	c, err := pgx.Connect(ctx, conn)
	if err != nil {
		return "", err
	}
	defer c.Close(context.WithoutCancel(ctx))
	results, err := c.PgConn().Exec(ctx, sql).ReadAll()
	if n := len(results); err != nil || n == 0 || len(results[n-1].Rows) == 0 {
		return "", err
	}
	return string(results[len(results)-1].Rows[0][0]), nil
}

// freePort returns a TCP port of the loopback that nobody listens on.
func freePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}

// command runs a program to its end and returns what it printed; an error holds
// the last line of that.
func command(cmd *exec.Cmd) (string, error) {
	out, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		last := text[strings.LastIndexByte(text, '\n')+1:]
		return text, fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, last)
	}
	return text, nil
}
