package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgfailproxy/cluster"
	"pgfailproxy/config"
	"pgfailproxy/health"
	"pgfailproxy/verifier"
)

const setupUse = `Usage: pgfailproxy setup [flags]

Prepares the primary for the proxy: gives the role of the members' connection
strings what a failover needs, and makes the function by which the proxy looks
up passwords (for auth: terminate). It shows the SQL and asks before it runs it,
in one transaction. It can be run again. Standbys get everything by replication.

  pgfailproxy setup --config pgfailproxy.yaml --as "user=postgres"`

// setupTimeout bounds looking for the primary, and what is run on it.
const setupTimeout = 30 * time.Second

func setupCommand(ctx context.Context, args []string, std streams) error {
	fs := flags("setup", setupUse, std)
	src := config.Flags(fs)
	as := fs.String("as", "user=postgres", "who runs it: keywords of a connection string that replace the members' own; must be a superuser")
	superusers := fs.Bool("superusers", false, "with auth: terminate, let superusers and replication roles log in through the proxy too")
	yes := fs.Bool("yes", false, "do not ask")
	dryRun := fs.Bool("dry-run", false, "show the SQL and do nothing")
	if done, err := parse(fs, args, std); done {
		return err
	}
	cfg, err := src.Load(os.Environ())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	primary, err := findPrimary(ctx, cfg)
	if err != nil {
		return err
	}
	statements := append(grants(primary.Conn.User), verifier.Statements(primary.Conn.User, *superusers)...)
	fmt.Fprintf(std.out, "-- on %s, database %s\nBEGIN;\n", primary, primary.Conn.Database)
	for _, s := range statements {
		fmt.Fprintf(std.out, "%s;\n", s)
	}
	fmt.Fprintln(std.out, "COMMIT;")
	if *dryRun {
		return nil
	}
	if !*yes && !agreed(os.Stdin, std.out) {
		return errors.New("nothing was done")
	}
	if err := install(ctx, primary, *as, statements); err != nil {
		return err
	}
	fmt.Fprintln(std.out, "done")
	return nil
}

// findPrimary returns the one member that is writable.
func findPrimary(ctx context.Context, cfg *config.Config) (config.Member, error) {
	var found []config.Member
	var why []string
	for _, m := range cfg.Members {
		o := health.Once(ctx, m.Name, m.Conn.Copy(), max(cfg.Timeout, 5*time.Second))
		switch {
		case !o.Healthy():
			why = append(why, m.Name+": "+o.Err)
		case o.Role == cluster.RolePrimary:
			found = append(found, m)
		default:
			why = append(why, m.Name+" is a standby")
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return config.Member{}, fmt.Errorf("no member is a primary (%s): the role of the connection strings must exist and be able to log in: CREATE ROLE ... LOGIN PASSWORD '...'", strings.Join(why, "; "))
	}
	return config.Member{}, fmt.Errorf("%s and %s are both writable: name only the members of one cluster", found[0].Name, found[1].Name)
}

// grants are what a failover needs, as check wants it.
func grants(role string) []string {
	to := " TO " + verifier.Quote(role)
	return []string{
		"GRANT pg_monitor" + to,
		"GRANT EXECUTE ON FUNCTION pg_catalog.pg_promote(boolean, integer), pg_catalog.pg_reload_conf(), pg_catalog.pg_wal_replay_resume()" + to,
		"GRANT ALTER SYSTEM ON PARAMETER primary_conninfo" + to,
	}
}

func agreed(in io.Reader, out io.Writer) bool {
	fmt.Fprint(out, "Run this? [y/N] ")
	answer, _ := bufio.NewReader(in).ReadString('\n') // its end is a no
	answer = strings.ToLower(strings.TrimSpace(answer))
	return answer == "y" || answer == "yes"
}

// install runs the statements in one transaction.
func install(ctx context.Context, m config.Member, as string, statements []string) error {
	// The password of another user is found for the same server.
	who, err := pgconn.ParseConfig("host=" + quoteValue(m.Conn.Host) + " port=" + strconv.Itoa(int(m.Conn.Port)) + " dbname=" + quoteValue(m.Conn.Database) + " " + as)
	if err != nil {
		return errors.New(`--as: it cannot be read: write keywords of a connection string, such as "user=postgres"`)
	}
	conn := m.Conn.Copy()
	conn.User, conn.Password = who.User, who.Password
	pg, err := pgconn.ConnectConfig(ctx, conn)
	if err != nil {
		return fmt.Errorf("connect to %s as %s: %w: see --as", m.Name, who.User, err)
	}
	defer pg.Close(ctx)
	// A simple query of several statements is one transaction.
	if _, err := pg.Exec(ctx, strings.Join(statements, ";\n")).ReadAll(); err != nil {
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) && pgErr.Hint != "" {
			err = fmt.Errorf("%w (%s)", err, pgErr.Hint)
		}
		return fmt.Errorf("on %s as %s, and nothing was changed: %w", m.Name, who.User, err)
	}
	return nil
}

func quoteValue(v string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(v) + "'"
}
