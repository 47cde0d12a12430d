package config

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Member is one PostgreSQL server: its name in logs and the Record, and how to
// connect to it. Printed or marshalled it shows no secret.
type Member struct {
	Name string
	// Conn was made by pgconn.ParseConfig, so ConnectConfig takes it. It names
	// one server only: its Fallbacks, if any, are the same one with and without
	// TLS. Whoever wants to change it makes a Copy.
	Conn *pgconn.Config
}

// Target returns where the member is, for people: host:port or the path of a
// socket, the user and the database.
func (m Member) Target() string {
	_, addr := pgconn.NetworkAddress(m.Conn.Host, m.Conn.Port)
	db := m.Conn.Database
	if db == "" {
		db = m.Conn.User // the server's default
	}
	return fmt.Sprintf("%s user=%s dbname=%s", addr, m.Conn.User, db)
}

// String returns the name and Target.
func (m Member) String() string { return m.Name + " " + m.Target() }

// MarshalText returns what String does.
func (m Member) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

var memberName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}$`)

// parseMembers parses what was given, in its order. Errors begin with the
// origin.
func parseMembers(all []given) ([]Member, error) {
	if len(all) == 0 {
		return nil, fmt.Errorf(`%s: there is none: name each PostgreSQL server, for example with --member pg1="host=10.0.0.1 user=pgfailproxy"`, membersKey)
	}
	var out []Member
	names := make(map[string]string)     // name to origin
	addresses := make(map[string]string) // address to name
	for _, g := range all {
		if !memberName.MatchString(g.key) {
			// A wrong name may be a part of a connection string: not shown.
			origin := strings.TrimSpace(strings.TrimSuffix(g.origin, "."+printable(g.key)))
			return nil, fmt.Errorf(`%s: a member is a name of letters, digits, "_", "-" or ".", at most 63, and a connection string: write for example pg1="host=10.0.0.1 user=pgfailproxy"`, origin)
		}
		if first, twice := names[g.key]; twice {
			return nil, fmt.Errorf("%s: member %s is already named by %s: give each its own name", g.origin, g.key, first)
		}
		names[g.key] = g.origin
		conn, err := parseConn(g.text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", g.origin, err)
		}
		network, addr := pgconn.NetworkAddress(conn.Host, conn.Port)
		id := network + "!" + strings.ToLower(addr)
		if other, twice := addresses[id]; twice {
			return nil, fmt.Errorf("%s: it has the same address as member %s (%s): one member is one server", g.origin, other, addr)
		}
		addresses[id] = g.key
		out = append(out, Member{Name: g.key, Conn: conn})
	}
	return out, nil
}

// parseConn parses a connection string and refuses what cannot be one server
// that is asked how it is. No error repeats a part of the string that could be
// a secret: in a broken one, that could be nearly every part.
func parseConn(text string) (*pgconn.Config, error) {
	if strings.TrimSpace(text) == "" {
		return nil, errors.New("the connection string is empty: write at least the host, such as host=10.0.0.1 user=pgfailproxy")
	}
	conn, err := pgconn.ParseConfig(text)
	if err != nil {
		return nil, connError(err)
	}
	for _, f := range conn.Fallbacks {
		if f.Host != conn.Host || f.Port != conn.Port {
			return nil, errors.New("the connection string (or PGHOST, PGPORT) has several hosts: one member is one server, so name each as a member of its own")
		}
	}
	if strings.ContainsAny(conn.Host, " @") || isURL(text) && strings.ContainsAny(conn.Database, "@/") {
		return nil, errors.New("the connection string is broken near the password: in a URL write @ as %40, / as %2F, : as %3A")
	}
	if conn.ValidateConnect != nil {
		return nil, errors.New("target_session_attrs (or PGTARGETSESSIONATTRS) must be any or left out: a member is asked whatever its role is")
	}
	if err := checkParams(conn.RuntimeParams); err != nil {
		return nil, err
	}
	if conn.RuntimeParams["application_name"] == "" {
		conn.RuntimeParams["application_name"] = "pgfailproxy"
	}
	return conn, nil
}

func isURL(text string) bool {
	return strings.HasPrefix(text, "postgres://") || strings.HasPrefix(text, "postgresql://")
}

// params are the keywords that a server is told at the start of a connection
// and that do no harm to ours.
var params = []string{"application_name", "client_encoding", "options", "timezone"}

// connKeywords are those of libpq that work here, for suggestions.
var connKeywords = append([]string{
	"channel_binding", "connect_timeout", "dbname", "host", "krbspn", "krbsrvname",
	"max_protocol_version", "min_protocol_version", "passfile", "password", "port",
	"require_auth", "service", "servicefile", "sslcert", "sslcertmode", "sslkey",
	"sslmode", "sslnegotiation", "sslpassword", "sslrootcert", "sslsni", "user",
}, params...)

// otherKeywords are those of libpq that pgx does not know: it would send them
// to the server, which would refuse them.
var otherKeywords = []string{
	"fallback_application_name", "gssdelegation", "gssencmode", "gsslib", "hostaddr",
	"keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval",
	"load_balance_hosts", "requirepeer", "requiressl", "ssl_max_protocol_version",
	"ssl_min_protocol_version", "sslcompression", "sslcrl", "sslcrldir",
	"sslkeylogfile", "tcp_user_timeout",
}

// checkParams refuses every other keyword. An unknown one may be a part of a
// password that was not quoted, so it is not repeated.
func checkParams(given map[string]string) error {
	for key := range given {
		switch {
		case slices.Contains(params, key):
		case key == "replication":
			return errors.New("the connection string must not have the keyword replication: a member is asked with SQL")
		case slices.Contains(otherKeywords, key):
			return fmt.Errorf("the keyword %s of the connection string is not supported: remove it", key)
		default:
			return fmt.Errorf("the connection string has an unknown keyword%s: mend it, put a value with spaces into single quotes, and a setting of the server into options='-c name=value'", didYouMean(key, connKeywords))
		}
	}
	return nil
}

// connProblems are the ways in which pgx refuses a connection string, and what
// we say instead. detail tells that the inner error holds nothing but the name
// of a file or service, or what is wrong with it.
var connProblems = []struct {
	pgx, say string
	detail   bool
}{
	{"failed to parse as URL", "it is not a valid URL: write postgres://user:password@host:port/dbname, and in the password @ as %40, / as %2F, : as %3A", false},
	{"failed to parse as keyword/value", "it is not a list of keyword=value: put a value with spaces into single quotes", false},
	{"failed to read service", "service", true},
	{"failed to configure TLS", "TLS", true},
	{"invalid port", "the port is not a number from 1 to 65535 (or, in a URL, the password holds a character that must be written in percent form)", false},
	{"could not match", "it has several ports: one member is one server", false},
	{"invalid connect_timeout", "connect_timeout is not a number of seconds", false},
	{"invalid sslcertmode", "sslcertmode is not disable, allow or require", false},
	{"unknown target_session_attrs", "target_session_attrs must be any or left out: a member is asked whatever its role is", false},
	{"invalid min_protocol_version", "min_protocol_version is not 3.0, 3.2 or latest", false},
	{"invalid max_protocol_version", "max_protocol_version is not 3.0, 3.2 or latest", false},
	{"min_protocol_version cannot be", "min_protocol_version is greater than max_protocol_version", false},
	{"unknown channel_binding", "channel_binding is not disable, prefer or require", false},
	{"invalid require_auth", "require_auth holds an unknown method", false},
}

// connError puts pgx's error into words without a secret. pgx masks passwords
// as well as it can and says that this is no promise.
func connError(err error) error {
	const after = "`: " // pgx: cannot parse `...`: problem
	text := err.Error()
	if i := strings.LastIndex(text, after); i >= 0 {
		text = text[i+len(after):]
	}
	for _, p := range connProblems {
		if !strings.HasPrefix(text, p.pgx) {
			continue
		}
		if inner := errors.Unwrap(err); p.detail && inner != nil {
			return fmt.Errorf("connection string: %s: %w", p.say, inner)
		}
		return fmt.Errorf("connection string: %s", p.say)
	}
	return errors.New("the connection string cannot be read: write keyword=value pairs or a postgres:// URL")
}
