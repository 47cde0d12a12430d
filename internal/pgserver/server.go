package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Host is the address that every server listens on.
const Host = "127.0.0.1"

// Superuser is the name of every server's superuser.
const Superuser = "postgres"

// StopMode is how much time a server that is stopped gives its sessions; the
// words are pg_ctl's.
type StopMode int

const (
	// Fast ends the sessions, writes a checkpoint and sends all WAL to the
	// standbys first.
	Fast StopMode = iota
	// Smart waits until the last client has left.
	Smart
	// Immediate ends without a checkpoint; the next start recovers.
	Immediate
)

// Server is one PostgreSQL server in a folder of its own. It keeps its port
// when it is started again. Its methods may be called from several goroutines,
// but Start, Restart and Close only by one at a time.
type Server struct {
	in   Install
	dir  string
	opts Options

	mu   sync.Mutex
	port int      // 0 before the first start
	proc *process // nil when it was never started
}

func (s *Server) data() string    { return filepath.Join(s.dir, "data") }
func (s *Server) logPath() string { return filepath.Join(s.dir, "server.log") }

// Host returns the address it listens on.
func (s *Server) Host() string { return Host }

// Port returns the TCP port, or 0 before the first start.
func (s *Server) Port() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.port
}

// Addr returns host:port.
func (s *Server) Addr() string { return net.JoinHostPort(Host, strconv.Itoa(s.Port())) }

// Socket returns the folder of its Unix-domain socket, or "" if the folder's
// name is too long to have one.
func (s *Server) Socket() string {
	// sun_path holds 104 bytes on BSDs and 108 on Linux.
	if len(s.dir)+len("/.s.PGSQL.65535") >= 104 {
		return ""
	}
	return s.dir
}

// Name returns Options.Name.
func (s *Server) Name() string { return s.opts.Name }

// Dir returns the folder that holds the server's data and log.
func (s *Server) Dir() string { return s.dir }

// ConnString returns a libpq connection string. It holds the password if user
// is the superuser and has one.
func (s *Server) ConnString(user, db string) string {
	c := fmt.Sprintf("host=%s port=%d user=%s dbname=%s sslmode=disable", Host, s.Port(), user, db)
	if user == Superuser && s.opts.Password != "" {
		c += " password='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s.opts.Password) + "'"
	}
	return c
}

// current returns the latest run, or nil.
func (s *Server) current() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc
}

// Running reports whether the server's main process exists; it may hang.
func (s *Server) Running() bool {
	p := s.current()
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// errPortTaken means that another program listens on the port.
var errPortTaken = errors.New("the port is in use")

// Start starts the server and waits until it accepts connections. The first
// start chooses a free port. If ctx ends first, the server is killed.
func (s *Server) Start(ctx context.Context) error {
	if s.Running() {
		return fmt.Errorf("start %s: it is running", s.opts.Name)
	}
	chosen := s.Port() != 0
	for try := 0; ; try++ {
		if !chosen {
			port, err := freePort()
			if err != nil {
				return err
			}
			s.mu.Lock()
			s.port = port
			s.mu.Unlock()
		}
		err := s.start(ctx)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errPortTaken) && !chosen && try < 10:
			continue
		}
		if !chosen {
			s.mu.Lock()
			s.port = 0
			s.mu.Unlock()
		}
		return fmt.Errorf("start %s: %w", s.opts.Name, err)
	}
}

func (s *Server) start(ctx context.Context) error {
	log, err := os.OpenFile(s.logPath(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close() // the child has its own
	begin, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(s.in.Bin, "postgres"), "-D", s.data(),
		"-p", strconv.Itoa(s.Port()), "-c", "unix_socket_directories="+s.Socket())
	cmd.Dir, cmd.Env = s.dir, environ()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = s.in.owner.attributes()
	p, err := start(cmd)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.proc = p
	s.mu.Unlock()

	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for !s.ready(p) {
		select {
		case <-p.done:
			said := s.logFrom(begin)
			if strings.Contains(said, "could not bind") {
				return fmt.Errorf("%w: %d", errPortTaken, s.Port())
			}
			return fmt.Errorf("it ended at once; its log:\n%s", tail(said, 4<<10))
		case <-ctx.Done():
			p.kill()
			return fmt.Errorf("it did not accept connections: %w; its log:\n%s", context.Cause(ctx), tail(s.logFrom(begin), 4<<10))
		case <-look.C:
		}
	}
	return nil
}

// The lines of postmaster.pid (src/include/utils/pidfile.h), from 0.
const (
	pidLine    = 0
	shmLine    = 6 // key and id of the System V segment
	statusLine = 7
)

// pidFile returns the lines of postmaster.pid, which exists while the server
// runs and after it was killed; as many as there are by now.
func (s *Server) pidFile() []string {
	b, err := os.ReadFile(filepath.Join(s.data(), "postmaster.pid"))
	if err != nil {
		return nil
	}
	return strings.Split(string(b), "\n")
}

// ready reports whether this run accepts connections, as pg_ctl finds out: by
// the last line of postmaster.pid. So it needs neither a connection nor a
// password.
func (s *Server) ready(p *process) bool {
	lines := s.pidFile()
	return len(lines) > statusLine && lines[pidLine] == strconv.Itoa(p.cmd.Process.Pid) &&
		strings.TrimSpace(lines[statusLine]) == "ready"
}

// freePort returns a port that nothing listens on now. It is taken from below
// the range that systems use for the near end of outgoing connections (Linux:
// from 32768), so that no connection takes it while its server is down.
func freePort() (int, error) {
	for range 100 {
		port := 15000 + rand.IntN(17000)
		ln, err := net.Listen("tcp", net.JoinHostPort(Host, strconv.Itoa(port)))
		if err == nil {
			ln.Close()
			return port, nil
		}
	}
	return 0, fmt.Errorf("no free port found on %s in 100 tries", Host)
}

// Stop asks the server to stop and waits until it has. If ctx ends first it is
// still stopping. A paused server stops once it is resumed. Stopping a server
// that does not run is no error.
func (s *Server) Stop(ctx context.Context, mode StopMode) error {
	if !s.Running() {
		return nil
	}
	p := s.current()
	sig := syscall.SIGINT
	switch mode {
	case Smart:
		sig = syscall.SIGTERM
	case Immediate:
		sig = syscall.SIGQUIT
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", s.opts.Name, err)
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop %s: it has not ended: %w", s.opts.Name, context.Cause(ctx))
	}
}

// Restart stops the server fast and starts it on the same port.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Stop(ctx, Fast); err != nil {
		return err
	}
	return s.Start(ctx)
}

// Kill ends all processes of the server at once, as a power cut would. What it
// gave to the operating system to write is not lost. Killing a server that does
// not run is no error.
func (s *Server) Kill() error {
	if !s.Running() {
		return nil
	}
	if err := s.current().kill(); err != nil {
		return fmt.Errorf("kill %s: %w", s.opts.Name, err)
	}
	return nil
}

// Pause makes the server hang: its processes exist and the kernel still takes
// connections for it, but nothing answers.
func (s *Server) Pause() error {
	p := s.current()
	if p == nil {
		return fmt.Errorf("pause %s: it does not run", s.opts.Name)
	}
	if err := p.freeze(); err != nil {
		return fmt.Errorf("pause %s: %w", s.opts.Name, err)
	}
	return nil
}

// Resume ends what Pause began.
func (s *Server) Resume() {
	if p := s.current(); p != nil {
		p.thaw()
	}
}

// Log returns the end of the server's log, at most 64 KiB.
func (s *Server) Log() string { return tail(s.logFrom(0), 64<<10) }

func (s *Server) logFrom(offset int64) string {
	f, err := os.Open(s.logPath())
	if err != nil {
		return ""
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return ""
	}
	b, _ := io.ReadAll(f) // what could be read is better than nothing
	return string(b)
}

// Close kills the server if it runs and removes its folder and what else it
// left on the machine.
func (s *Server) Close() error {
	err := s.Kill()
	if err == nil {
		s.removeSharedMemory()
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

// removeSharedMemory removes the System V segment that a killed server leaves,
// and that its next start would remove, but there will be none. It does so as
// the owner: root in a container may not. The segment is small (56 bytes) but
// their number is limited; where there is no ipcrm it stays.
func (s *Server) removeSharedMemory() {
	lines := s.pidFile()
	if len(lines) <= shmLine {
		return // it was stopped, and has removed it
	}
	if fields := strings.Fields(lines[shmLine]); len(fields) == 2 {
		cmd := exec.Command("ipcrm", "-m", fields[1])
		cmd.Dir, cmd.SysProcAttr = s.dir, s.in.owner.attributes()
		cmd.Run()
	}
}
