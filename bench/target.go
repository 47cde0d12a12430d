package main

import (
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

var targetNames = []string{"direct", "haproxy", "pgbouncer", "pgfailproxy"}

// startTargets starts those that o asks for. The caller stops them, also when
// there is an error.
func startTargets(ctx context.Context, o options, s *server) (all []*target, err error) {
	names := o.targets
	if len(names) == 0 {
		names = targetNames
	}
	for _, name := range names {
		if !slices.Contains(targetNames, name) {
			return nil, fmt.Errorf("there is no target %q: %s are there", name, strings.Join(targetNames, ", "))
		}
	}
	if err := installPeers(ctx, names); err != nil {
		return nil, err
	}
	for _, name := range names {
		t := &target{name: name, port: s.port, version: "no proxy between"}
		if name != "direct" {
			if err := t.start(o, s.port); err != nil {
				return all, err
			}
		}
		all = append(all, t)
		if err := awaitPostgres(ctx, t.port); err != nil {
			if t.proc != nil {
				err = fmt.Errorf("%w\n%s", err, t.proc.tail())
			}
			return all, fmt.Errorf("wait for %s: %w", name, err)
		}
	}
	return all, nil
}

// installPeers gets the other proxies from Debian's packages where they are
// missing.
func installPeers(ctx context.Context, names []string) error {
	var missing []string
	for _, name := range []string{"haproxy", "pgbouncer"} {
		if slices.Contains(names, name) && findPeer(name) == "" {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil || os.Geteuid() != 0 {
		return fmt.Errorf("%s: not installed: install the packages (as root: apt-get install %[2]s), or name the other targets with --targets",
			strings.Join(missing, " and "), strings.Join(missing, " "))
	}
	progress("installing %s from Debian packages", strings.Join(missing, " and "))
	install := exec.CommandContext(ctx, "sh", "-c", `apt-get update -q && apt-get install -y -q --no-install-recommends "$@"`, "install")
	install.Args = append(install.Args, missing...)
	// RUNLEVEL keeps the packages from starting their services.
	install.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1")
	if _, err := command(install); err != nil {
		return fmt.Errorf("install %s: %w", strings.Join(missing, " and "), err)
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

// start starts the proxy in front of the server's port.
func (t *target) start(o options, server int) (err error) {
	if t.port, err = freePort(); err != nil {
		return err
	}
	path := findPeer(t.name)
	var args []string
	switch t.name {
	case "haproxy":
		t.version = firstLine(path, "-v") + ", TCP mode, threads as it likes"
		config, err := t.configure(o.dir, "haproxy.cfg", server)
		if err != nil {
			return err
		}
		args = []string{"-db", "-f", config}
	case "pgbouncer":
		t.version = firstLine(path, "--version") + ", session pooling: a connection that a client leaves serves the next"
		if err := os.WriteFile(filepath.Join(o.dir, "pgbouncer.users"), []byte(`"postgres" ""`+"\n"), 0o644); err != nil {
			return err
		}
		config, err := t.configure(o.dir, "pgbouncer.ini", server)
		if err != nil {
			return err
		}
		if os.Geteuid() == 0 { // it refuses to be root
			args = []string{"-u", "nobody"}
		}
		args = append(args, config)
	case "pgfailproxy":
		path, t.version = o.proxy, firstLine(o.proxy, "version")+", default settings"
		admin, err := freePort()
		if err != nil {
			return err
		}
		args = proxyArgs(o.dir, t.port, admin, "pg1="+connString(server))
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

// configure writes the configuration from the template of that name.
func (t *target) configure(dir, name string, server int) (path string, err error) {
	tmpl, err := template.ParseFS(files, name+".tmpl")
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, name)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return "", err
	}
	err = tmpl.Execute(f, struct {
		Listen, Server int
		Dir            string
	}{t.port, server, dir})
	return path, errors.Join(err, f.Close())
}
