package pgserver

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// dieWithParent asks the kernel to send SIGQUIT (an immediate shutdown, to
// which PostgreSQL's main process ends its children) when the thread that
// started the child ends. See process.run for why that is the whole program.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGQUIT }

// parents returns the parent of every process of this machine that still runs:
// what is dead and only waits to be collected is left out.
func parents() (map[int]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	of := make(map[int]int)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // it ended meanwhile
		}
		// pid (name) state ppid ...: the name may hold anything, so count from
		// its last parenthesis.
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(fields) < 2 || fields[0][0] == 'Z' {
			continue
		}
		if ppid, err := strconv.Atoi(string(fields[1])); err == nil {
			of[pid] = ppid
		}
	}
	return of, nil
}
