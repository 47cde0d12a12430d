package main

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"
)

//go:embed *.tmpl
var files embed.FS

// target is a way from the client to the server.
type target struct {
	name    string
	version string // and how it is set up, in words
	port    int
	proc    *process // nil where nothing stands between
}

// direct is the target that has nothing between client and server.
const direct = "direct"

var targetNames = []string{direct, peer, "pgbouncer", self}

// chosenTargets are the names of those that o asks for.
func (o options) chosenTargets() ([]string, error) {
	for _, name := range o.targets {
		if !slices.Contains(targetNames, name) {
			return nil, fmt.Errorf("there is no target %q: %s are there", name, strings.Join(targetNames, ", "))
		}
	}
	if len(o.targets) == 0 {
		return targetNames, nil
	}
	return o.targets, nil
}

// startTarget starts the target of that name in front of s, with room for so many
// clients, and waits until a query gets through. The caller stops it.
func startTarget(ctx context.Context, o options, name string, s *server, clients int) (*target, error) {
	if err := installPeer(ctx, name); err != nil {
		return nil, err
	}
	t := &target{name: name, port: s.port, version: "no proxy between"}
	if name != direct {
		if err := t.start(o, s, clients); err != nil {
			return nil, err
		}
	}
	if err := awaitPostgres(ctx, t.port); err != nil {
		if t.proc != nil {
			err = fmt.Errorf("%w\n%s", err, t.proc.tail())
		}
		t.stop()
		return nil, fmt.Errorf("wait for %s: %w", name, err)
	}
	return t, nil
}

// stop ends what start has started.
func (t *target) stop() {
	if t.proc != nil {
		t.proc.stop()
	}
}

// cpu returns what the proxy has computed so far; nothing where there is none.
func (t *target) cpu() (time.Duration, error) {
	if t.proc == nil {
		return 0, nil
	}
	return t.proc.cpu()
}

// installPeer gets another's proxy from Debian's packages where it is missing.
func installPeer(ctx context.Context, name string) error {
	if name == direct || name == self || findPeer(name) != "" {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil || os.Geteuid() != 0 {
		return fmt.Errorf("%s: not installed: install the package (as root: apt-get install %[1]s), or name the other targets with --targets", name)
	}
	progress("installing %s from Debian's package", name)
	install := exec.CommandContext(ctx, "sh", "-c", `apt-get update -q && apt-get install -y -q --no-install-recommends "$0"`, name)
	// RUNLEVEL keeps the packages from starting their services.
	install.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1")
	if _, err := command(install); err != nil {
		return fmt.Errorf("install %s: %w", name, err)
	}
	return nil
}

// findPeer returns where a program is, or empty. Debian keeps these in a folder
// that is not in everybody's PATH.
func findPeer(name string) string {
	for _, path := range []string{name, "/usr/sbin/" + name} {
		if found, err := exec.LookPath(path); err == nil {
			return found
		}
	}
	return ""
}

// start starts the proxy in front of s.
func (t *target) start(o options, s *server, clients int) (err error) {
	if t.port, err = freePort(); err != nil {
		return err
	}
	facts := facts{Listen: t.port, Server: s.port, Clients: clients, Dir: o.dir, Role: scramRole, Verifier: s.verifier}
	path := findPeer(t.name)
	var args []string
	switch t.name {
	case peer:
		t.version = firstLine(path, "-v") + ", TCP mode, threads as it likes"
		config, err := facts.write("haproxy.cfg")
		if err != nil {
			return err
		}
		args = []string{"-db", "-f", config}
	case "pgbouncer":
		t.version = firstLine(path, "--version") + ", session pooling: a connection that a client leaves serves the next"
		config, err := facts.write("pgbouncer.ini", "pgbouncer.users", "pgbouncer.hba")
		if err != nil {
			return err
		}
		if os.Geteuid() == 0 { // it refuses to be root
			args = []string{"-u", "nobody"}
		}
		args = append(args, config)
	case self:
		path, t.version = o.proxy, firstLine(o.proxy, "version")+", default settings but for the number of clients"
		admin, err := freePort()
		if err != nil {
			return err
		}
		args = proxyArgs(o.dir, t.port, admin, "pg1="+connString(s.port))
		args = append(args, "--max-client-connections="+strconv.Itoa(clients))
	default:
		return errors.New("no target of that name")
	}
	t.proc, err = startProcess(o.dir, t.name, path, args...)
	return err
}

// proxyArgs are pgfailproxy's arguments: the defaults, but for addresses.
func proxyArgs(dir string, listen, admin int, members ...string) []string {
	args := []string{"run", "--listen", "127.0.0.1:" + strconv.Itoa(listen), "--admin", "127.0.0.1:" + strconv.Itoa(admin),
		"--record", filepath.Join(dir, "record")}
	for _, m := range members {
		args = append(args, "--member", m)
	}
	return args
}

// facts fill the templates.
type facts struct {
	Listen, Server int
	Clients        int    // at most, at the same time
	Dir            string // where the files are
	Role, Verifier string // of the role with a password
}

// write makes files from the templates of those names and returns the path of the
// first.
func (f facts) write(names ...string) (string, error) {
	for _, name := range names {
		tmpl, err := template.ParseFS(files, name+".tmpl")
		if err != nil {
			return "", err
		}
		var text bytes.Buffer
		if err := tmpl.Execute(&text, f); err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(f.Dir, name), text.Bytes(), 0o644); err != nil {
			return "", err
		}
	}
	return filepath.Join(f.Dir, names[0]), nil
}
