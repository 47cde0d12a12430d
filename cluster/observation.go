package cluster

import (
	"fmt"
	"time"
)

// Role is what a PostgreSQL server said of itself with pg_is_in_recovery.
type Role uint8

const (
	// RoleUnknown: it was not asked or did not answer.
	RoleUnknown Role = iota
	// RolePrimary: it is not in recovery and takes writes.
	RolePrimary
	// RoleStandby: it is in recovery.
	RoleStandby
)

// String returns the word of the glossary.
func (r Role) String() string {
	switch r {
	case RolePrimary:
		return "primary"
	case RoleStandby:
		return "standby"
	default:
		return "unknown"
	}
}

// MarshalText makes a Role readable in JSON.
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Reach is how a member took a question.
type Reach uint8

const (
	// ReachNone: it was not asked yet.
	ReachNone Reach = iota
	// ReachAnswered: it answered all of the question.
	ReachAnswered
	// ReachLost: the kept connection broke while nothing was asked. This is no
	// miss: the server may have ended one connection only. It ends what the
	// last answer proved, because a server changes from primary to standby only
	// by a restart, and a restart breaks every connection.
	ReachLost
	// ReachRefused: the answer is no: connection refused or reset, "the
	// database system is shutting down", a name that no longer exists, an error
	// that says the server is broken. A miss, however fast it came.
	ReachRefused
	// ReachSilent: nothing came within the time-out. A miss.
	ReachSilent
	// ReachStarting: it said that it is starting up or in recovery (SQLSTATE
	// 57P03). It is alive but cannot serve yet.
	ReachStarting
	// ReachFull: it said that it has no free connection (SQLSTATE 53300). It is
	// alive and serves those that it has.
	ReachFull
	// ReachFailed: it is a PostgreSQL server that answers, but not to us: a
	// refused password, a missing database or privilege. A failover would not
	// help, so this is no miss; but nothing is proved either, so no new session
	// is sent there until a person has mended it.
	ReachFailed
)

// String returns the word used in logs and status.
func (r Reach) String() string {
	switch r {
	case ReachAnswered:
		return "answered"
	case ReachLost:
		return "connection lost"
	case ReachRefused:
		return "refused"
	case ReachSilent:
		return "silent"
	case ReachStarting:
		return "starting"
	case ReachFull:
		return "full"
	case ReachFailed:
		return "failed"
	default:
		return "not asked"
	}
}

// MarshalText makes a Reach readable in JSON.
func (r Reach) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Miss reports whether this counts towards the threshold of misses.
func (r Reach) Miss() bool { return r == ReachRefused || r == ReachSilent }

// Observation is one answer of a member to a probe, or the lack of one.
type Observation struct {
	// Member is the name of the member that was asked.
	Member string
	// Asked is when the question was sent. What an observation proves, it
	// proves of this moment: the answer may have been long under way.
	Asked time.Time
	// Took is the time from question to answer or failure.
	Took  time.Duration
	Reach Reach
	// Err says why Reach is not ReachAnswered, in words fit for a log: it never
	// holds a secret. Empty when the member answered.
	Err string

	// What follows is set only when Reach is ReachAnswered.

	Role   Role
	System SystemID
	// Position is, on a primary, its timeline and the WAL that it has flushed
	// (pg_current_wal_flush_lsn). On a standby it is the highest timeline that
	// the server shows and the larger of received and replayed: received alone
	// starts at a segment boundary after a restart (PAF issue 225).
	Position Position
	// Replayed is how far a standby has replayed. Zero on a primary.
	Replayed LSN
	// Streaming reports whether a standby's WAL receiver is connected. False on
	// a primary.
	Streaming bool
	// Addr is the network address that answered, as "network!address": sessions
	// are sent to exactly what was verified, not to what a name resolves to
	// later.
	Addr Addr
	// ServerVersion is server_version_num, such as 180006.
	ServerVersion int
}

// Addr is a network address of a server that a name was resolved to.
type Addr struct {
	Network string `json:"network"` // "tcp" or "unix"
	Address string `json:"address"` // host:port, or a socket's path
}

// String returns the address without the network.
func (a Addr) String() string { return a.Address }

// Healthy reports whether the observation is an answer.
func (o Observation) Healthy() bool { return o.Reach == ReachAnswered }

// Serves reports whether the observation proves that its member is the primary
// that r names: an answer, not in recovery, of r's system and timeline.
func (o Observation) Serves(r Record) bool { return o.WhyNot(r) == "" }

// WhyNot says why o does not prove its member to be the primary that r names,
// in words for an operator; empty if it does.
func (o Observation) WhyNot(r Record) string {
	switch {
	case o.Member != r.Primary:
		return fmt.Sprintf("%s is not the primary of the record, %s is", o.Member, r.Primary)
	case !o.Healthy():
		if o.Err != "" {
			return o.Err
		}
		return o.Reach.String()
	case o.System != r.System:
		return fmt.Sprintf("%s belongs to another database cluster: its system identifier is %d, the record's is %d", o.Member, o.System, r.System)
	case o.Role != RolePrimary:
		return fmt.Sprintf("%s is in recovery (a standby)", o.Member)
	case o.Position.Timeline != r.Timeline:
		return fmt.Sprintf("%s is on timeline %d, the record says %d", o.Member, o.Position.Timeline, r.Timeline)
	}
	return ""
}
