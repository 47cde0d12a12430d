package main

import (
	"context"
	"encoding/json"
	"os"
	"time"

	"pgfailproxy/admin"
)

const statusUse = `Usage: pgfailproxy status [flags]

Shows what a running proxy knows: the primary, the members, the sessions and the
last failovers; with --sessions, every session. Exits with 0 when a primary is served, with 3 when none is, and
with 1 when the proxy does not answer.`

// exitNotServed is the exit code of status while clients wait for a primary.
const exitNotServed = exitCode(3)

func statusCommand(ctx context.Context, args []string, std streams) error {
	fs := flags("status", statusUse, std)
	at := fs.String("admin", envOr("PGFAILPROXY_ADMIN", "127.0.0.1:8008"), "address of the proxy's admin HTTP, also PGFAILPROXY_ADMIN")
	sessions := fs.Bool("sessions", false, "show every session: whose, from where, and what it is about, without its queries")
	asJSON := fs.Bool("json", false, "print JSON for programs")
	timeout := fs.Duration("timeout", 5*time.Second, "how long to wait for the answer")
	if done, err := parse(fs, args, std); done {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	if *sessions {
		return showSessions(ctx, *at, *asJSON, std)
	}
	s, err := admin.Fetch(ctx, *at)
	if err != nil {
		return err
	}
	if *asJSON {
		err = writeJSON(std, s)
	} else {
		err = admin.WriteTable(std.out, s)
	}
	if err != nil {
		return err
	}
	if !s.Served() {
		return exitNotServed
	}
	return nil
}

func showSessions(ctx context.Context, at string, asJSON bool, std streams) error {
	all, err := admin.FetchSessions(ctx, at)
	if err != nil {
		return err
	}
	if asJSON {
		return writeJSON(std, all)
	}
	return admin.WriteSessions(std.out, all, time.Now())
}

func writeJSON(std streams, value any) error {
	enc := json.NewEncoder(std.out)
	enc.SetIndent("", "  ")
	return enc.Encode(value)
}

func envOr(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}
