package pgserver

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// process is one run of a server: its main process (the postmaster) and
// whatever that started.
//
// A run does not outlive this program. The kernel sends the main process
// SIGQUIT when the thread that started it ends. Threads are Go's to end, so the
// goroutine that starts the process keeps its thread until the process has
// ended: then the thread ends early only if the whole program does. A server
// that is frozen cannot take a signal, therefore freeze leaves a thaw behind
// that depends on us in another way.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the main process has ended

	mu     sync.Mutex
	frozen io.Closer // thaws when it is closed; nil while the server runs
}

// start starts cmd as a process.
func start(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go p.run(started)
	return p, <-started
}

// run ends with the process; whoever waits for done has waited for it.
func (p *process) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(p.done)
	err := p.cmd.Start()
	started <- err
	if err == nil {
		p.cmd.Wait() // how it ended is in its log
	}
}

// tree returns the main process and all that descend from it, without the dead.
func (p *process) tree() ([]int, error) {
	parent, err := parents()
	if err != nil {
		return nil, err
	}
	root := p.cmd.Process.Pid
	var pids []int
	for pid := range parent {
		for at, steps := pid, 0; at > 1 && steps < 10; at, steps = parent[at], steps+1 {
			if at == root {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids, nil
}

// stopAll stops every process of the server where it stands and returns them.
func (p *process) stopAll() ([]int, error) {
	// The main process first: it alone starts others.
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return nil, fmt.Errorf("stop PostgreSQL's main process: %w", err)
	}
	stopped := map[int]bool{}
	for {
		pids, err := p.tree()
		if err != nil {
			return nil, err
		}
		before := len(stopped)
		for _, pid := range pids {
			stopped[pid] = true
			syscall.Kill(pid, syscall.SIGSTOP) // it may have ended meanwhile
		}
		// One that was being started while we looked shows in the next look.
		if len(stopped) == before {
			return pids, nil
		}
	}
}

// freeze makes the server hang until thaw, or until this program ends.
func (p *process) freeze() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.frozen != nil {
		return nil
	}
	pids, err := p.stopAll()
	if err != nil {
		return err
	}
	args := []string{"-c", `read _; kill -CONT "$@"`, "thaw"}
	for _, pid := range pids {
		args = append(args, strconv.Itoa(pid))
	}
	// The shell waits for the end of its input, which comes when thaw closes
	// it, and also when this program dies.
	shell := exec.Command("/bin/sh", args...)
	shell.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // not ended by Ctrl-C
	in, err := shell.StdinPipe()
	if err == nil {
		err = shell.Start()
	}
	if err != nil {
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGCONT)
		}
		return fmt.Errorf("start the shell that will thaw it: %w", err)
	}
	p.frozen = closerFunc(func() error {
		in.Close()
		shell.Wait() // fails if one of the processes was killed: nothing to mend
		return nil
	})
	return nil
}

// thaw undoes freeze.
func (p *process) thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.frozen != nil {
		p.frozen.Close()
		p.frozen = nil
	}
}

// kill ends every process of the server at once, without a chance for one to
// react to the end of another, and waits until all are gone.
func (p *process) kill() error {
	defer p.thaw()
	pids, err := p.stopAll()
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, pid := range pids {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	<-p.done
	return waitGone(pids, 10*time.Second)
}

// waitGone waits until none of the processes runs any more: a server does not
// start while one of its former run holds its shared memory.
func waitGone(pids []int, limit time.Duration) error {
	for end := time.Now().Add(limit); ; time.Sleep(2 * time.Millisecond) {
		alive, err := parents()
		if err != nil {
			return err
		}
		left := 0
		for _, pid := range pids {
			if _, ok := alive[pid]; ok {
				left++
			}
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d of the server's processes are still there %v after SIGKILL", left, limit)
		}
	}
}

type closerFunc func() error

func (f closerFunc) Close() error { return f() }
