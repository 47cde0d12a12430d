package config

import (
	"strings"
	"time"

	"pgfailproxy/hba"
)

const (
	envPrefix  = "PGFAILPROXY_"
	membersKey = "members"
	configKey  = "config"
)

// setting is one row of the table: all that is known of a setting.
type setting struct {
	key    string // in the file; the flag's and the variable's name follow from it
	kind   string // what is written: "duration", "number", ...
	def    string // as a user would write it
	zero   string // what zero or an empty value means; empty if it is refused
	help   string // one sentence without a full stop, lower case
	secret bool   // its value may hold a secret

	// set reads text into c. Its error says what is wrong with the text and what
	// would be right, without the setting's name. Of a list it adds one item.
	set func(c *Config, text string) error
	// get returns the value as a user would write it; of a list, with semicolons.
	get func(c *Config) string
	// clear empties a list, which each source gives as a whole. It is nil for
	// what is no list.
	clear func(c *Config)
}

// flag returns the name of the setting's flag, without dashes.
func (s setting) flag() string {
	if s.key == membersKey {
		return "member"
	}
	return strings.ReplaceAll(s.key, "_", "-")
}

// env returns the name of the setting's variable; that of members is a prefix.
func (s setting) env() string {
	if s.key == membersKey {
		return envPrefix + "MEMBER_"
	}
	return envPrefix + strings.ToUpper(s.key)
}

// settings is the table. The README's is made from it.
var settings = []setting{
	address("listen", "127.0.0.1:6432", "",
		"address for clients; `:6432` listens on every interface",
		func(c *Config) *string { return &c.Listen }),
	{key: membersKey, kind: "name: connection string",
		help: "the PostgreSQL servers, each a name and a libpq connection string (keywords or URL) of a user who may promote and read `pg_stat_*`"},
	address("admin", "127.0.0.1:8008", "no HTTP server",
		"address for status, metrics and health checks over HTTP; read-only and without a password",
		func(c *Config) *string { return &c.Admin }),
	path("record", "pgfailproxy.record", "",
		"file that says who is primary; keep it on a disk that survives a restart",
		func(c *Config) *string { return &c.Record }),

	choice("sessions", Follow, []string{Follow, Passthrough},
		"`follow`: the proxy reads along and tells each client what became of its work; `passthrough`: it moves bytes only, and TLS goes through to the server",
		func(c *Config) *string { return &c.Sessions }),
	choice("auth", Relay, []string{Relay, Terminate},
		"`relay`: the server asks for the password; `terminate`: the proxy does, by client_hba, and logs in on the client's behalf",
		func(c *Config) *string { return &c.Auth }),
	list("client_hba", "rule",
		"with `auth: terminate`, who may log in and how, as lines of pg_hba.conf such as `hostssl all app 10.0.0.0/8 scram-sha-256`; the first that matches decides, nobody else is let in",
		func(c *Config) *hba.Rules { return &c.ClientHBA }, hba.Parse),
	path("client_tls_cert", "", "clients have no TLS",
		"file with the proxy's certificate for clients and its chain, PEM; read again when it changes",
		func(c *Config) *string { return &c.ClientTLSCert }),
	path("client_tls_key", "", "none",
		"file with the key of client_tls_cert, PEM",
		func(c *Config) *string { return &c.ClientTLSKey }),
	path("client_tls_ca", "", "clients are not asked for certificates",
		"file with the authorities that certificates of clients are checked against, PEM",
		func(c *Config) *string { return &c.ClientTLSCA }),
	choice("client_tls_min_version", TLS12, []string{TLS12, TLS13},
		"least version of TLS that a client may use: `1.2` or `1.3`",
		func(c *Config) *string { return &c.ClientTLSMinVersion }),
	toggle("client_tls_required", false,
		"whether clients without TLS are refused",
		func(c *Config) *bool { return &c.ClientTLSRequired }),

	duration("interval", 1*time.Second, "",
		"time between two questions to a healthy member",
		func(c *Config) *time.Duration { return &c.Interval }),
	duration("timeout", 1*time.Second, "",
		"how long one answer may take",
		func(c *Config) *time.Duration { return &c.Timeout }),
	number("threshold", 3, 1, 100, "",
		"misses in a row after which a member is down",
		func(c *Config) *int { return &c.Threshold }),
	duration("retry_interval", 100*time.Millisecond, "",
		"time between two questions after a miss",
		func(c *Config) *time.Duration { return &c.RetryInterval }),
	duration("start_timeout", 60*time.Second, "",
		"how long a primary that answers \"starting up\" is waited for before failover",
		func(c *Config) *time.Duration { return &c.StartTimeout }),

	duration("hold_timeout", 30*time.Second, "",
		"how long a client waits while there is no primary before it gets an error",
		func(c *Config) *time.Duration { return &c.HoldTimeout }),
	number("release_rate", 200, 0, 1_000_000, "all at once",
		"sessions per second that go on after a hold",
		func(c *Config) *int { return &c.ReleaseRate }),
	number("max_client_connections", 1000, 0, 1_000_000, "no limit",
		"client connections at the same time",
		func(c *Config) *int { return &c.MaxClientConnections }),
	number("max_role_connections", 0, 0, 1_000_000, "no limit",
		"of these, how many of one role",
		func(c *Config) *int { return &c.MaxRoleConnections }),
	number("max_database_connections", 0, 0, 1_000_000, "no limit",
		"of these, how many to one database",
		func(c *Config) *int { return &c.MaxDatabaseConnections }),
	duration("login_timeout", 10*time.Second, "",
		"how long a client may take until it is logged in, not counting the time for which it is held",
		func(c *Config) *time.Duration { return &c.LoginTimeout }),
	duration("client_idle", 0, "unlimited",
		"how long a session may be idle outside a transaction before it is ended",
		func(c *Config) *time.Duration { return &c.ClientIdle }),
	duration("connect_timeout", 5*time.Second, "",
		"how long connecting to a member for a client may take",
		func(c *Config) *time.Duration { return &c.ConnectTimeout }),
	duration("shutdown_timeout", 30*time.Second, "they are ended at once",
		"how long sessions may finish after SIGTERM",
		func(c *Config) *time.Duration { return &c.ShutdownTimeout }),
	duration("tcp_keepalive", 10*time.Second, "",
		"time between TCP keep-alive probes on a connection where nothing is sent",
		func(c *Config) *time.Duration { return &c.TCPKeepalive }),
	duration("tcp_user_timeout", 30*time.Second, "",
		"how long data sent may stay unacknowledged before the connection counts as broken",
		func(c *Config) *time.Duration { return &c.TCPUserTimeout }),

	choice("durability", "async", []string{"async"},
		"what a standby must have to be promoted; this version has `async` only: it may lack up to max_lag_bytes",
		func(c *Config) *string { return &c.Durability }),
	size("max_lag_bytes", 16<<20, "it must have everything that was last seen on the primary",
		"WAL that a standby may lack and still be promoted",
		func(c *Config) *uint64 { return &c.MaxLagBytes }),
	command("fence_command", "none",
		"run by `sh -c` before a promotion to make sure that the old primary takes no writes; if it does not exit with 0, nobody is promoted",
		func(c *Config) *string { return &c.FenceCommand }),
	duration("fence_timeout", 10*time.Second, "",
		"how long fence_command may take",
		func(c *Config) *time.Duration { return &c.FenceTimeout }),
	duration("drain_timeout", 60*time.Second, "",
		"how long a candidate's replay may stand still before it is given up",
		func(c *Config) *time.Duration { return &c.DrainTimeout }),
	duration("promote_timeout", 60*time.Second, "",
		"how long a promotion may take before the candidate is given up",
		func(c *Config) *time.Duration { return &c.PromoteTimeout }),

	choice("log_format", "auto", []string{"auto", "text", "json"},
		"`text`, `json`, or `auto`: text on a terminal and JSON otherwise",
		func(c *Config) *string { return &c.LogFormat }),
	level("log_level", "info",
		"least level that is logged: `debug`, `info`, `warn` or `error`"),
}

// renamed are settings of earlier versions, each with the one to write now.
var renamed = map[string]string{
	"max_connections": "max_client_connections",
	"startup_timeout": "login_timeout",
}

// lookup returns the setting of that key, or nil.
func lookup(key string) *setting {
	for i := range settings {
		if settings[i].key == key {
			return &settings[i]
		}
	}
	return nil
}

// keys returns all keys in the order of the table.
func keys() []string {
	out := make([]string, len(settings))
	for i, s := range settings {
		out[i] = s.key
	}
	return out
}
