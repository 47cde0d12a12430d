package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"

	"pgfailproxy/internal/pgserver"
)

const (
	image     = "postgres:18"
	container = "pgfailproxy-bench-postgres"
)

// settings of the server that is measured: room for all clients of a round, and
// no checkpoint that is forced in the middle. All else is the default, fsync
// among it.
var settings = map[string]string{
	"max_connections": "400",
	"shared_buffers":  "256MB",
	"max_wal_size":    "8GB",
}

// scramRole may read everything and has a password; everybody else is trusted.
const scramRole, scramPassword = "bench_scram", "bench-only"

// server is the PostgreSQL that all targets lead to.
type server struct {
	port     int
	version  string // and where it runs, in words
	verifier string // of scramRole's password, as the server keeps it
	logs     string // a folder for what pgbench logs, where that runs
	// pgbench returns the command that runs pgbench where the server runs, so
	// that the client's version is the server's.
	pgbench func(ctx context.Context, args ...string) *exec.Cmd
	// shell returns the command that runs a script where pgbench runs.
	shell func(ctx context.Context, script string, args ...string) *exec.Cmd
	close func() error
}

// startServer starts PostgreSQL in a container that uses the host's network, or
// without Docker as processes of this machine. Every local user is trusted. The
// caller calls close.
func startServer(ctx context.Context, dir string) (*server, error) {
	start, where := startContainer, "in a container on the host's network"
	if exec.CommandContext(ctx, "docker", "image", "inspect", image).Run() != nil {
		progress("no Docker, or no image %s: PostgreSQL runs as processes of this machine", image)
		start, where = startLocal, "as processes of this machine"
	}
	s, err := start(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("start PostgreSQL %s: %w", where, err)
	}
	err = awaitPostgres(ctx, s.port)
	if err == nil {
		s.version, err = query(ctx, connString(s.port), "SELECT current_setting('server_version')")
	}
	if err == nil {
		err = s.askForPassword(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	s.version += " " + where
	return s, nil
}

// askForPassword makes scramRole and has the server ask for its password. The
// server writes its own rules, so that it is the same wherever it runs.
func (s *server) askForPassword(ctx context.Context) (err error) {
	conn := connString(s.port)
	file, err := query(ctx, conn, "SELECT current_setting('hba_file')")
	if err != nil {
		return err
	}
	for _, sql := range []string{
		fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", scramRole, scramPassword),
		"GRANT pg_read_all_data TO " + scramRole,
		fmt.Sprintf("COPY (VALUES ('host all %s all scram-sha-256'), ('host all all all trust'), ('local all all trust')) TO '%s'", scramRole, file),
		"SELECT pg_reload_conf()",
	} {
		if _, err := query(ctx, conn, sql); err != nil {
			return fmt.Errorf("make a role with a password: %w", err)
		}
	}
	s.verifier, err = query(ctx, conn, "SELECT rolpassword FROM pg_catalog.pg_authid WHERE rolname = '"+scramRole+"'")
	return err
}

func startContainer(ctx context.Context, _ string) (*server, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	// What a run that was killed may have left.
	exec.CommandContext(ctx, "docker", "rm", "--force", "--volumes", container).Run()
	args := []string{"run", "--detach", "--name", container, "--network", "host", "--shm-size", "512m",
		"--env", "POSTGRES_HOST_AUTH_METHOD=trust", image,
		"postgres", "-c", "listen_addresses=127.0.0.1", "-c", "port=" + strconv.Itoa(port)}
	for name, value := range settings {
		args = append(args, "-c", name+"="+value)
	}
	remove := func() error {
		_, err := command(exec.Command("docker", "rm", "--force", "--volumes", container))
		return err
	}
	if _, err := command(exec.CommandContext(ctx, "docker", args...)); err != nil {
		return nil, errors.Join(err, remove())
	}
	inside := func(ctx context.Context, args ...string) *exec.Cmd {
		return exec.CommandContext(ctx, "docker", append([]string{"exec", container}, args...)...)
	}
	return &server{
		port: port,
		logs: "/dev/shm", // in memory
		pgbench: func(ctx context.Context, args ...string) *exec.Cmd {
			return inside(ctx, append([]string{"pgbench"}, args...)...)
		},
		shell: func(ctx context.Context, script string, args ...string) *exec.Cmd {
			return inside(ctx, append([]string{"sh", "-c", script}, args...)...)
		},
		close: remove,
	}, nil
}

func startLocal(ctx context.Context, dir string) (*server, error) {
	in, err := pgserver.Find()
	if err != nil {
		return nil, err
	}
	bin := filepath.Join(in.Bin, "pgbench")
	if _, err := exec.LookPath(bin); err != nil {
		return nil, fmt.Errorf("%w: install the package postgresql-contrib", err)
	}
	pg, err := in.InitPrimary(ctx, filepath.Join(dir, "postgres"), pgserver.Options{Settings: settings})
	if err != nil {
		return nil, err
	}
	if err := pg.Start(ctx); err != nil {
		return nil, errors.Join(err, pg.Close())
	}
	return &server{
		port:    pg.Port(),
		logs:    dir,
		pgbench: func(ctx context.Context, args ...string) *exec.Cmd { return exec.CommandContext(ctx, bin, args...) },
		shell: func(ctx context.Context, script string, args ...string) *exec.Cmd {
			return exec.CommandContext(ctx, "sh", append([]string{"-c", script}, args...)...)
		},
		close: pg.Close,
	}, nil
}
