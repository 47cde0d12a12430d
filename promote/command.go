package promote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"pgfailproxy/cluster"
)

const (
	// maxOutput bounds what is kept of a fence command's output, in bytes; it
	// is the end, where the reason for a failure stands.
	maxOutput = 4 << 10
	// outputWait is how long the output is waited for once the command has
	// ended: something that it left running may hold it open.
	outputWait = time.Second
)

// RunFenceCommand runs an operator's command with sh -c, which is to make sure
// that the old primary takes no writes. Exit status 0 is success. When ctx ends
// it is killed together with all that it started, unless that left its process
// group.
//
// It finds in its environment PGFAILPROXY_OLD_PRIMARY, PGFAILPROXY_NEW_PRIMARY
// and PGFAILPROXY_EPOCH, but no settings and no password of ours. The command
// itself is not logged, because it may hold a secret; its output is.
func (p *Promoter) RunFenceCommand(ctx context.Context, command, oldPrimary, newPrimary string, epoch cluster.Epoch) error {
	began := time.Now()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	cmd.Env = append(commandEnviron(),
		"PGFAILPROXY_OLD_PRIMARY="+oldPrimary,
		"PGFAILPROXY_NEW_PRIMARY="+newPrimary,
		fmt.Sprintf("PGFAILPROXY_EPOCH=%d", epoch))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = outputWait
	var out lastBytes
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it succeeded and left something running
	}
	said := strings.ToValidUTF8(strings.TrimSpace(string(out)), "?")
	if said != "" {
		p.log.Info("the fence command printed", slog.String("member", oldPrimary), slog.Uint64("epoch", uint64(epoch)),
			slog.String("output", said), slog.Duration("took", time.Since(began)))
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("fence command for %s: killed after %s: %w", oldPrimary, time.Since(began).Round(time.Millisecond), context.Cause(ctx))
	default:
		lastLine := said[strings.LastIndexByte(said, '\n')+1:]
		return fmt.Errorf("fence command for %s: %w: %s", oldPrimary, err, lastLine)
	}
}

// commandEnviron is our environment without what may hold a password.
func commandEnviron() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PGPASSWORD=") && !strings.HasPrefix(kv, "PGFAILPROXY_") {
			env = append(env, kv)
		}
	}
	return env
}

// lastBytes is a writer that keeps the last maxOutput bytes.
type lastBytes []byte

func (b *lastBytes) Write(p []byte) (int, error) {
	n := len(p)
	if n > maxOutput {
		p = p[n-maxOutput:]
	}
	if over := len(*b) + len(p) - maxOutput; over > 0 {
		*b = append((*b)[:0], (*b)[over:]...)
	}
	*b = append(*b, p...)
	return n, nil
}
