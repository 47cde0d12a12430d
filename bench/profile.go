package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// profile records what t's process does until stop is called, if --profile says
// so: a file for perf report. It costs a few percent, of every proxy alike.
func (o options) profile(t *target, workload string, round int) (stop func()) {
	if o.profiles == "" || t.proc == nil {
		return func() {}
	}
	file := filepath.Join(o.profiles, fmt.Sprintf("%s-%s-%d.perf", strings.ReplaceAll(workload, " ", "-"), t.name, round+1))
	perf := exec.Command("perf", "record", "-q", "-F", "499", "-g", "-o", file, "-p", fmt.Sprint(t.proc.cmd.Process.Pid))
	if err := perf.Start(); err != nil {
		progress("no profile: %v", err)
		return func() {}
	}
	return func() {
		perf.Process.Signal(os.Interrupt) // it writes its file and ends
		perf.Wait()
	}
}
