// Package config turns one YAML file, the environment and flags into one
// checked, immutable struct. One table (settings.go) is the source of every
// name, default and sentence about a setting, also of those in the README.
package config

import (
	"encoding"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"pgfailproxy/hba"
)

// Words of the settings sessions, auth and client_tls_min_version.
const (
	Follow      = "follow"      // each session is followed on the wire
	Passthrough = "passthrough" // bytes are moved and not looked at

	Relay     = "relay"     // the server authenticates clients
	Terminate = "terminate" // the proxy does

	TLS12 = "1.2"
	TLS13 = "1.3"
)

// Config holds the settings of a proxy. Load made and checked it; nobody
// changes it afterwards, so it may be read from every goroutine. What zero
// means is said where zero is allowed; elsewhere Load refuses it.
type Config struct {
	// File is the path of the file that was read; empty when there was none.
	File string
	// Members are the PostgreSQL servers in the order in which they were named.
	// There is at least one.
	Members []Member

	Listen string // host:port for clients; an empty host means all addresses
	Admin  string // host:port of the HTTP server; empty means none
	Record string // path of the Record's file, as it was given

	Sessions string // Follow or Passthrough
	Auth     string // Relay or Terminate
	// ClientHBA is for Terminate only, and then has a rule at least.
	ClientHBA hba.Rules

	ClientTLSCert       string // path of the certificate; empty means no TLS for clients
	ClientTLSKey        string // path of its key; empty exactly if ClientTLSCert is
	ClientTLSCA         string // path; empty means clients are not asked for certificates
	ClientTLSMinVersion string // TLS12 or TLS13
	ClientTLSRequired   bool   // clients without TLS are refused

	Interval      time.Duration // between two questions to a healthy member
	Timeout       time.Duration // for one answer
	Threshold     int           // misses in a row until a member is down
	RetryInterval time.Duration // between two questions after a miss
	StartTimeout  time.Duration // for a primary that says it is starting up

	HoldTimeout time.Duration // for a client while there is no primary
	ReleaseRate int           // held sessions let go per second; 0 means all at once

	MaxClientConnections   int           // 0 means no limit
	MaxRoleConnections     int           // of one role; 0 means no limit
	MaxDatabaseConnections int           // to one database; 0 means no limit
	LoginTimeout           time.Duration // until a client is logged in, without the time it is held
	ClientIdle             time.Duration // outside a transaction until a session is ended; 0 means unlimited

	ConnectTimeout  time.Duration // for a connection to a member
	ShutdownTimeout time.Duration // for sessions to finish; 0 ends them at once
	TCPKeepalive    time.Duration // between two keep-alive probes, and before the first
	TCPUserTimeout  time.Duration // for the peer to acknowledge what was sent

	Durability     string        // always "async" in this version
	MaxLagBytes    uint64        // that a candidate may lack; 0 means none
	FenceCommand   string        `json:"-"` // for sh -c, may hold a secret; empty means none
	FenceTimeout   time.Duration // for FenceCommand
	DrainTimeout   time.Duration // for a replay that stands still
	PromoteTimeout time.Duration // for a promotion

	LogFormat string // "auto", "text" or "json"
	LogLevel  slog.Level
}

var (
	_ fmt.Stringer           = (*Config)(nil)
	_ fmt.Stringer           = Member{}
	_ encoding.TextMarshaler = Member{}
)

// DetectCrash returns how long after a member's connection broke it is declared
// down when every further connection is refused: the break is followed by a
// question at once, and that miss by threshold - 1 others.
func (c *Config) DetectCrash() time.Duration {
	return time.Duration(c.Threshold-1) * c.RetryInterval
}

// DetectHang returns how long after a member fell silent it is declared down,
// at worst: it fell silent just after an answer, and each question that follows
// has to time out. The next question is sent retry_interval after the one
// before it or when that one timed out, whichever is later.
func (c *Config) DetectHang() time.Duration {
	return c.Interval + time.Duration(c.Threshold)*max(c.Timeout, c.RetryInterval)
}

// KeyValue is a setting as text.
type KeyValue struct{ Key, Value string }

// Public returns the settings in the order of the table, without secrets: a
// member is its address, user and database, and of a fence command only that
// there is one.
func (c *Config) Public() []KeyValue {
	var out []KeyValue
	for _, s := range settings {
		if s.key == membersKey {
			for _, m := range c.Members {
				out = append(out, KeyValue{membersKey + "." + m.Name, m.Target()})
			}
			continue
		}
		v := s.get(c)
		if s.secret && v != "" {
			v = "(set)"
		}
		out = append(out, KeyValue{s.key, v})
	}
	return out
}

// String returns what Public does, in one line.
func (c *Config) String() string {
	var b strings.Builder
	for i, kv := range c.Public() {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%s=%q", kv.Key, kv.Value)
	}
	return b.String()
}

// LogValue keeps secrets out of logs.
func (c *Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// Warnings returns sentences about settings that are allowed but that a person
// should know of; usually none.
func (c *Config) Warnings() []string {
	var out []string
	if len(c.Members) == 1 {
		out = append(out, fmt.Sprintf("members: %s is the only member, so there is nothing to fail over to: add its standby", c.Members[0].Name))
	}
	return append(out, c.clientWarnings()...)
}
