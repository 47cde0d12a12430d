package config

import (
	"strings"
	"time"
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
	// would be right, without the setting's name.
	set func(c *Config, text string) error
	// get returns the value as a user would write it.
	get func(c *Config) string
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
	path("record", "pgfailproxy.record",
		"file that says who is primary; keep it on a disk that survives a restart",
		func(c *Config) *string { return &c.Record }),

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
	number("max_connections", 1000, 0, 1_000_000, "no limit",
		"client connections at the same time",
		func(c *Config) *int { return &c.MaxConnections }),
	duration("startup_timeout", 10*time.Second, "",
		"how long a client may take for its start-up packet",
		func(c *Config) *time.Duration { return &c.StartupTimeout }),
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
