package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgfailproxy/cluster"
	"pgfailproxy/config"
	"pgfailproxy/health"
	"pgfailproxy/internal/certs"
	"pgfailproxy/internal/tcp"
	"pgfailproxy/lease"
	"pgfailproxy/verifier"
)

const checkUse = `Usage: pgfailproxy check [flags]

Reads the configuration as run does, asks every member, and says what is wrong
and how to mend it. It changes nothing and does not need the proxy to run.
Exits with 0 when a failover could happen now, else with 1.`

// oldest and newest are the major versions of PostgreSQL that the proxy is
// tested with.
const oldest, newest = 15, 18

// checkup collects what check finds.
type checkup struct {
	out      io.Writer
	problems int
}

func (c *checkup) line(format string, args ...any) { fmt.Fprintf(c.out, format+"\n", args...) }

func (c *checkup) problem(what, mend string) {
	c.problems++
	c.line("  problem: %s\n           -> %s", what, mend)
}

func (c *checkup) advice(what, mend string) { c.line("  advice:  %s\n           -> %s", what, mend) }

func checkCommand(ctx context.Context, args []string, std streams) error {
	fs := flags("check", checkUse, std)
	src := config.Flags(fs)
	if done, err := parse(fs, args, std); done {
		return err
	}
	cfg, err := src.Load(os.Environ())
	if err != nil {
		return err
	}
	c := &checkup{out: std.out}
	c.line("settings: valid%s", from(cfg.File))
	c.line("  a crash is declared %s after the primary's connections broke", cfg.DetectCrash())
	c.line("  a hang or a cut network is declared within %s", cfg.DetectHang())
	c.line("  clients wait up to %s for a primary", cfg.HoldTimeout)
	for _, w := range cfg.Warnings() {
		c.advice(w, "see the README's part on settings")
	}
	rec := c.record(cfg.Record)
	var answers []cluster.Observation
	for _, m := range cfg.Members {
		answers = append(answers, c.member(ctx, cfg, m))
	}
	c.together(answers, rec)
	c.clients(ctx, cfg, answers)
	if c.problems > 0 {
		c.line("\n%d found", c.problems)
		return exitCode(1)
	}
	c.line("\nall well: a failover could happen now")
	return nil
}

// clients looks at what only logins of clients need.
func (c *checkup) clients(ctx context.Context, cfg *config.Config, all []cluster.Observation) {
	if cfg.ClientTLSCert == "" && cfg.Auth != config.Terminate {
		return
	}
	c.line("clients:")
	if cfg.ClientTLSCert != "" {
		c.certificate(ctx, cfg)
	}
	if cfg.Auth != config.Terminate {
		return
	}
	conns := map[string]*pgconn.Config{}
	for _, m := range cfg.Members {
		conns[m.Name] = m.Conn
	}
	source := verifier.New(conns)
	defer source.Close()
	for _, o := range all {
		if !o.Healthy() || o.Role != cluster.RolePrimary {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := source.Lookup(ctx, o.Member, o.Addr, conns[o.Member].User)
		cancel()
		if err != nil {
			c.problem(fmt.Sprintf("passwords cannot be looked up on %s: %v", o.Member, err), "pgfailproxy setup, with the same settings")
			continue
		}
		c.line("  passwords can be looked up on %s", o.Member)
	}
}

func (c *checkup) certificate(ctx context.Context, cfg *config.Config) {
	keeper, err := certs.Load(certFiles(cfg), slog.New(slog.DiscardHandler))
	if err != nil {
		c.problem(err.Error(), "the proxy would not start with it")
		return
	}
	for _, w := range keeper.Warnings() {
		c.advice(w, "renew it: the proxy reads it again by itself")
	}
	_, leaf := keeper.ForConnection()
	c.line("  certificate of %s, until %s", leaf.Subject, leaf.NotAfter.UTC().Format(time.DateOnly))
	if err := checkCertificates(ctx, cfg, leaf); err != nil {
		c.problem(err.Error(), "the proxy would not start so")
	}
}

func from(file string) string {
	if file == "" {
		return ""
	}
	return " (" + file + ")"
}

// record looks at the Record without taking the right to write it.
func (c *checkup) record(path string) cluster.Record {
	c.line("record: %s", path)
	rec, err := lease.Read(path)
	switch {
	case err != nil:
		c.problem(err.Error(), "the proxy would not start with it")
	case rec.IsZero():
		c.line("  none yet: the first start will take the one writable member")
	default:
		c.line("  %s", rec)
	}
	return rec
}

// member asks one member how it is and what its role may do.
func (c *checkup) member(ctx context.Context, cfg *config.Config, m config.Member) cluster.Observation {
	conn := m.Conn.Copy()
	conn.DialFunc = tcp.Options{KeepAlive: cfg.TCPKeepalive, UserTimeout: cfg.TCPUserTimeout}.Dialer().DialContext
	c.line("member %s: %s", m.Name, m.Target())
	o := health.Once(ctx, m.Name, conn, max(cfg.Timeout, 5*time.Second))
	if !o.Healthy() {
		c.problem("it does not answer: "+o.Err, mendReach(o))
		return o
	}
	c.line("  %s, PostgreSQL %s, timeline %d, at %s, answers in %s", o.Role, major(o.ServerVersion), o.Position.Timeline, o.Position.LSN, roundUp(o.Took))
	if o.Took > cfg.Timeout/2 {
		c.advice(fmt.Sprintf("an answer takes %s, close to timeout %s", roundUp(o.Took), cfg.Timeout), "raise timeout, or misses will be counted that are none")
	}
	if v := o.ServerVersion / 10000; v < oldest || v > newest {
		c.advice(fmt.Sprintf("PostgreSQL %d is not among the tested versions, %d to %d", v, oldest, newest), "use one of these")
	}
	if o.Role == cluster.RoleStandby && !o.Streaming {
		c.problem("it is a standby but does not stream from any primary", "look at primary_conninfo, its slot and its log")
	}
	if err := c.privileges(ctx, conn, o); err != nil {
		c.problem("its settings could not be read: "+err.Error(), "try again")
	}
	return o
}

func mendReach(o cluster.Observation) string {
	switch o.Reach {
	case cluster.ReachFailed:
		return "mend the connection string, the password or pg_hba.conf"
	case cluster.ReachFull:
		return "raise max_connections, or keep places free with reserved_connections and GRANT pg_use_reserved_connections"
	case cluster.ReachStarting:
		return "wait until it has started"
	}
	return "start it, or mend the host and port in its connection string"
}

func major(version int) string {
	return fmt.Sprintf("%d.%d", version/10000, version%10000)
}

// settingsQuery returns, one row: may call pg_promote, pg_reload_conf,
// pg_wal_replay_resume; may set primary_conninfo; is a pg_monitor;
// synchronous_standby_names, wal_retrieve_retry_interval (ms),
// recovery_min_apply_delay (ms), the role's name.
const settingsQuery = `select
  pg_catalog.has_function_privilege('pg_catalog.pg_promote(boolean,integer)', 'execute'),
  pg_catalog.has_function_privilege('pg_catalog.pg_reload_conf()', 'execute'),
  pg_catalog.has_function_privilege('pg_catalog.pg_wal_replay_resume()', 'execute'),
  pg_catalog.has_parameter_privilege('primary_conninfo', 'alter system'),
  pg_catalog.pg_has_role('pg_monitor', 'usage'),
  pg_catalog.current_setting('synchronous_standby_names'),
  (select setting from pg_catalog.pg_settings where name = 'wal_retrieve_retry_interval'),
  (select setting from pg_catalog.pg_settings where name = 'recovery_min_apply_delay'),
  pg_catalog.quote_ident(current_user)`

func (c *checkup) privileges(ctx context.Context, config *pgconn.Config, o cluster.Observation) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	results, err := conn.Exec(ctx, settingsQuery).ReadAll()
	if err != nil {
		return err
	}
	row := results[0].Rows[0]
	role := string(row[8])
	grants := []struct{ what, grant string }{
		{"promote", "GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer) TO " + role},
		{"reload the configuration", "GRANT EXECUTE ON FUNCTION pg_reload_conf() TO " + role},
		{"resume a paused replay", "GRANT EXECUTE ON FUNCTION pg_wal_replay_resume() TO " + role},
		{"stop the WAL receiver", "GRANT ALTER SYSTEM ON PARAMETER primary_conninfo TO " + role},
		{"see the replication", "GRANT pg_monitor TO " + role},
	}
	for i, g := range grants {
		if string(row[i]) != "t" {
			c.problem(fmt.Sprintf("role %s may not %s", role, g.what), "on the primary: "+g.grant)
		}
	}
	if o.Role != cluster.RoleStandby {
		return nil
	}
	if names := string(row[5]); strings.TrimSpace(names) != "" {
		c.problem("synchronous_standby_names is set on this standby: once promoted, its commits would wait for standbys that it does not have", "ALTER SYSTEM RESET synchronous_standby_names on it, and reload")
	}
	if ms, _ := strconv.Atoi(string(row[6])); ms > 1000 {
		c.advice(fmt.Sprintf("wal_retrieve_retry_interval is %d ms: a standby that lost its primary for a moment streams again only after that", ms), "set it to 100ms on every member")
	}
	if ms, _ := strconv.Atoi(string(row[7])); ms > 0 {
		c.advice(fmt.Sprintf("recovery_min_apply_delay is %d ms: a promotion would wait for it", ms), "use a standby without delay for failover")
	}
	return nil
}

// together looks at what the members are to each other, and to the record.
func (c *checkup) together(all []cluster.Observation, rec cluster.Record) {
	c.line("together:")
	systems := map[cluster.SystemID]string{}
	var primaries, standbys []string
	for _, o := range all {
		if !o.Healthy() {
			continue
		}
		systems[o.System] = o.Member
		if o.Role == cluster.RolePrimary {
			primaries = append(primaries, o.Member)
		} else {
			standbys = append(standbys, o.Member)
		}
		if !rec.IsZero() && o.Member == rec.Primary {
			if why := o.WhyNot(rec); why != "" {
				c.problem(why, "the proxy will not send clients there; see the README's part on the record")
			}
		}
	}
	if len(systems) > 1 {
		c.problem("the members belong to different database clusters (system identifiers differ)", "list only a primary and its standbys")
	}
	switch {
	case len(primaries) > 1 && rec.IsZero():
		c.problem(strings.Join(primaries, " and ")+" are both writable", "stop the wrong one, or make it a standby of the other")
	case len(primaries) > 1:
		c.advice(strings.Join(primaries, " and ")+" are both writable; the proxy serves only the record's, "+rec.Primary, "rebuild the other as a standby")
	case len(primaries) == 0:
		c.problem("no member is writable", "start the primary")
	}
	if len(standbys) == 0 {
		c.problem("there is no standby to fail over to", "make one with pg_basebackup -R")
	}
	if c.problems == 0 {
		c.line("  primary %s, standby %s", strings.Join(primaries, ", "), strings.Join(standbys, ", "))
	}
}
