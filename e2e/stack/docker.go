package stack

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// Container is the name of a service's container.
func (s *Stack) Container(service string) string { return s.project + "-" + service + "-1" }

func (s *Stack) network() string { return s.project + "_default" }

// compose runs docker compose on the project, and returns what it printed on
// standard output.
func (s *Stack) compose(ctx context.Context, args ...string) (string, error) {
	return s.run(ctx, "", "docker", append([]string{"compose"}, args...)...)
}

// docker runs docker, and returns what it printed on standard output.
func (s *Stack) docker(ctx context.Context, args ...string) (string, error) {
	return s.run(ctx, "", "docker", args...)
}

// run runs a program in the root of the repository. An error holds the end of
// what the program said of it.
func (s *Stack) run(ctx context.Context, stdin, program string, args ...string) (string, error) {
	begun := time.Now()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env = s.root, s.environ()
	cmd.WaitDelay = time.Second // a child may keep its output open
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	line := program + " " + strings.Join(args, " ")
	fmt.Fprintf(s.log, "%s (%.1f s)\n", line, time.Since(begun).Seconds())
	if err == nil {
		return out.String(), nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	// The reason may be on either stream: docker compose build has it on the
	// first.
	return out.String(), fmt.Errorf("%s: %w: %s", line, err, tail(out.String())+tail(said.String()))
}

// tail returns the end of what a program printed, for an error.
func tail(text string) string {
	const enough = 2 << 10
	text = strings.TrimSpace(text)
	if len(text) > enough {
		text = "..." + text[len(text)-enough:]
	}
	return text + "\n"
}

// findDocker says what is missing for a Stack, in words for a person.
func findDocker(ctx context.Context) error {
	if _, err := exec.LookPath("docker"); err != nil {
		return fmt.Errorf("docker was not found: install Docker with its Compose plugin, or leave these tests out with -short")
	}
	if out, err := exec.CommandContext(ctx, "docker", "info").CombinedOutput(); err != nil {
		return fmt.Errorf("no docker engine answers: start it, or leave these tests out with -short: %s", lastLine(out))
	}
	if out, err := exec.CommandContext(ctx, "docker", "compose", "version").CombinedOutput(); err != nil {
		return fmt.Errorf("docker has no Compose plugin: install docker-compose-plugin (Docker's packages) or docker-compose (Debian): %s", lastLine(out))
	}
	return nil
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

// Run runs a program in a service's container, and returns what it printed on
// standard output. On a member PGPASSWORD is set for the superuser; the proxy
// has one of its own.
func (s *Stack) Run(ctx context.Context, service, stdin string, command ...string) (string, error) {
	args := []string{"exec", "--interactive"}
	if service != Proxy {
		args = append(args, "--env", "PGPASSWORD")
	}
	args = append(args, s.Container(service))
	return s.run(ctx, stdin, "docker", append(args, command...)...)
}

// SQL runs statements on a member itself, from within its container, so that it
// works while the network is cut. It returns the rows, unaligned.
func (s *Stack) SQL(ctx context.Context, member, sql string) (string, error) {
	out, err := s.Run(ctx, member, sql, "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-f", "-")
	return strings.TrimSpace(out), err
}

// Logs returns what a service logged since a moment; the zero time means all.
func (s *Stack) Logs(ctx context.Context, service string, since time.Time) (string, error) {
	args := []string{"logs", s.Container(service)}
	if !since.IsZero() {
		args = append(args, "--since", since.UTC().Format(time.RFC3339Nano))
	}
	// PostgreSQL and the proxy log to standard error, scripts to either.
	out, err := exec.CommandContext(ctx, "docker", args...).CombinedOutput()
	return string(out), err
}

// ExitCode is with what a service ended that was stopped or killed.
func (s *Stack) ExitCode(ctx context.Context, service string) (int, error) {
	out, err := s.docker(ctx, "inspect", "--format", "{{.State.ExitCode}}", s.Container(service))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(out))
}

// Dump writes what helps to understand a failure: the proxy's status, what runs,
// and the end of every log.
func (s *Stack) Dump(ctx context.Context, w io.Writer) {
	show := func(what string, out string, err error) {
		fmt.Fprintf(w, "--- %s\n%s\n", what, out)
		if err != nil {
			fmt.Fprintf(w, "(%v)\n", err)
		}
	}
	out, err := s.compose(ctx, "ps", "--all")
	show("containers", out, err)
	out, err = s.docker(ctx, "exec", s.Container(Proxy), "pgfailproxy", "status", "--json")
	show("status", out, err)
	for _, service := range append([]string{Proxy}, Members...) {
		out, err := s.Logs(ctx, service, time.Time{})
		lines := strings.Split(strings.TrimSpace(out), "\n")
		show("log of "+service, strings.Join(lines[max(0, len(lines)-60):], "\n"), err)
	}
}
