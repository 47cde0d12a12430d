//go:build unix && !linux

package pgserver

import (
	"bufio"
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
)

// dieWithParent: only Linux has a signal for it. Elsewhere a server outlives a
// program that is killed.
func dieWithParent(*syscall.SysProcAttr) {}

// parents returns the parent of every process of this machine that still runs:
// what is dead and only waits to be collected is left out.
func parents() (map[int]int, error) {
	out, err := exec.Command("ps", "-A", "-o", "pid=,ppid=,state=").Output()
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	of := make(map[int]int)
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		var pid, ppid int
		var state string
		if _, err := fmt.Sscan(lines.Text(), &pid, &ppid, &state); err == nil && !strings.HasPrefix(state, "Z") {
			of[pid] = ppid
		}
	}
	return of, nil
}
