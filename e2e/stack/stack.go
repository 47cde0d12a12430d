// Package stack runs the servers of docker-compose.yml, and makes their faults:
// a primary, its standby and the proxy in containers of a project of its own, on
// free ports, beside whatever else runs on this machine. It is for the
// end-to-end tests and for benchmarks.
package stack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Proxy is the name of the proxy's service.
const Proxy = "proxy"

// Members are the names of the PostgreSQL servers: of the services, and in the
// proxy's status. After Up and Reset the first is the primary.
var Members = []string{"pg1", "pg2"}

// Passwords of the roles postgres, replicator and pgfailproxy. They hold what
// is easily quoted wrongly.
const (
	postgresPassword   = `p'o"st\gres $1 #`
	replicatorPassword = `r'e"pl\icator $1 #`
	proxyPassword      = `p'r"o\xy $1 #`
)

// readyWithin bounds how long servers may take from start to service.
const readyWithin = 90 * time.Second

// Options say how a Stack runs.
type Options struct {
	// Project names everything that is made, and is removed first: the rest of
	// a run that crashed. Two stacks of one project wait for each other.
	Project string
	// Config is the proxy's configuration; empty means deploy/pgfailproxy.yaml.
	// A path that is not absolute begins at the root of the repository.
	Config string
	// Log gets what docker is told to do; nil means nobody.
	Log io.Writer
}

// Stack is a running set of servers. Its methods may be called from several
// goroutines, but Down and Reset only while no other is.
type Stack struct {
	project string
	root    string
	log     io.Writer
	lock    *os.File
	ports   map[string]int // by the variable that docker-compose.yml has for it
	options Options
	config  string // the proxy's configuration now; empty: that of .env
}

// Up builds the proxy from the tree and starts everything: pg1 is served and
// pg2 streams from it. The caller calls Down, also after an error: Down takes a
// nil Stack.
func Up(ctx context.Context, o Options) (*Stack, error) {
	root, err := findRoot()
	if err != nil {
		return nil, err
	}
	s := &Stack{project: o.Project, root: root, log: o.Log, ports: map[string]int{}, options: o, config: o.Config}
	if s.log == nil {
		s.log = io.Discard
	}
	if err := findDocker(ctx); err != nil {
		return nil, err
	}
	if s.lock, err = lock(ctx, filepath.Join(os.TempDir(), o.Project+".lock")); err != nil {
		return nil, err
	}
	if err := s.freePorts(); err != nil {
		return s, err
	}
	if err := s.remove(ctx); err != nil {
		return s, fmt.Errorf("remove what an earlier run left: %w", err)
	}
	if _, err := s.compose(ctx, "build", Proxy); err != nil {
		return s, err
	}
	return s, s.start(ctx, "--wait") // as the README says; Reset need not be so patient
}

// Down removes everything that Up made: containers, volumes, network, image.
func (s *Stack) Down(ctx context.Context) error {
	if s == nil {
		return nil
	}
	defer s.lock.Close()
	defer os.Remove(s.settings())
	err := s.remove(ctx)
	_, err2 := s.compose(ctx, "down", "--volumes", "--rmi", "local")
	return errors.Join(err, err2)
}

// Reset makes everything new, whatever its state: empty servers, no record, pg1
// is served and pg2 streams from it. It takes some seconds.
func (s *Stack) Reset(ctx context.Context) error {
	s.config = s.options.Config
	if err := s.remove(ctx); err != nil {
		return err
	}
	return s.start(ctx)
}

// start starts everything where there is nothing, and waits for it. flags are
// for docker compose up.
func (s *Stack) start(ctx context.Context, flags ...string) error {
	if _, err := s.compose(ctx, append([]string{"up", "--detach", "--no-build"}, flags...)...); err != nil {
		return err
	}
	_, err := s.AwaitPair(ctx)
	return err
}

// remove removes containers, volumes and network of the project, fast and
// without good manners.
func (s *Stack) remove(ctx context.Context) error {
	out, err := s.docker(ctx, "ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project="+s.project)
	if err != nil {
		return err
	}
	if ids := strings.Fields(out); len(ids) > 0 {
		if _, err := s.docker(ctx, append([]string{"rm", "--force", "--volumes"}, ids...)...); err != nil {
			return err
		}
	}
	_, err = s.compose(ctx, "down", "--volumes", "--remove-orphans")
	return err
}

// freePorts asks the system for ports that nobody listens on.
func (s *Stack) freePorts() error {
	for _, name := range []string{"PROXY_PORT", "ADMIN_PORT", "PG1_PORT", "PG2_PORT"} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return fmt.Errorf("find a free port: %w", err)
		}
		defer ln.Close() // at the end, so that each gets another
		s.ports[name] = ln.Addr().(*net.TCPAddr).Port
	}
	return nil
}

// environ is the environment of every program: for docker compose it goes
// before .env.
func (s *Stack) environ() []string {
	env := append(os.Environ(),
		"COMPOSE_PROJECT_NAME="+s.project,
		"POSTGRES_PASSWORD="+postgresPassword,
		"REPLICATOR_PASSWORD="+replicatorPassword,
		"PROXY_PASSWORD="+proxyPassword,
		"PROXY_LOG_FORMAT=json",        // tests read it
		"PGPASSWORD="+postgresPassword, // for Run
	)
	for name, port := range s.ports {
		env = append(env, fmt.Sprintf("%s=%d", name, port))
	}
	if s.config != "" {
		env = append(env, "PROXY_CONFIG="+s.path(s.config))
	}
	return env
}

// path is where a file of the repository is.
func (s *Stack) path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(s.root, name)
}

// URL is where clients connect to the proxy, as the superuser.
func (s *Stack) URL() string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword("postgres", postgresPassword),
		Host: "127.0.0.1:" + strconv.Itoa(s.ports["PROXY_PORT"]), Path: "/postgres", RawQuery: "sslmode=prefer"}
	return u.String()
}

// Admin is host:port of the proxy's admin HTTP.
func (s *Stack) Admin() string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.ports["ADMIN_PORT"]))
}

// findRoot looks for docker-compose.yml from the working folder upwards.
func findRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "docker-compose.yml")); err == nil {
			return at, nil
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("no docker-compose.yml in %s or above: run this inside the repository", dir)
		}
	}
}
