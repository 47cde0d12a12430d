package admin

import (
	"time"

	"pgfailproxy/cluster"
)

// Status is what /status shows: one snapshot of the proxy. Programs read its
// JSON, so a field is added but never renamed or given another meaning.
type Status struct {
	Version string `json:"version"`
	// Time is when the snapshot was taken, by the proxy's clock. The Server sets
	// it where it is zero.
	Time time.Time `json:"time"`
	// State is the word for what the proxy is about, such as "serving".
	State string `json:"state"`
	// Reason says why it is not serving; empty when it is.
	Reason string    `json:"reason"`
	Since  time.Time `json:"since,omitzero"` // State holds
	// What follows to Candidate is the Record; zero while there is none.
	Epoch     cluster.Epoch      `json:"epoch"`
	System    cluster.SystemID   `json:"system,string"`
	Timeline  cluster.TimelineID `json:"timeline"`
	Primary   string             `json:"primary"`
	Held      bool               `json:"held"`
	Candidate string             `json:"candidate"`
	// Address is where new sessions are sent: that of Primary as it was last
	// verified. Empty while sessions wait.
	Address   string     `json:"address"`
	Members   []Member   `json:"members"` // as configured
	Sessions  Sessions   `json:"sessions"`
	Failovers []Failover `json:"failovers"` // the newest first; at most MaxFailovers are shown
	Detection Detection  `json:"detection"`
}

// MaxFailovers is how many failovers are shown.
const MaxFailovers = 10

// Member is what is known of one PostgreSQL server.
type Member struct {
	Name     string             `json:"name"`
	Role     string             `json:"role"`  // in its last answer, as cluster.Role's words
	Reach    string             `json:"reach"` // of the last question, as cluster.Reach's words
	Error    string             `json:"error"` // why it did not answer; empty when it did
	Address  string             `json:"address"`
	System   cluster.SystemID   `json:"system,string"`
	Timeline cluster.TimelineID `json:"timeline"`
	LSN      cluster.LSN        `json:"lsn"`      // written by a primary, received by a standby
	Replayed cluster.LSN        `json:"replayed"` // by a standby
	// Streaming: the WAL receiver of a standby is connected.
	Streaming bool `json:"streaming"`
	// LagBytes is the WAL that a standby lacks of what was last seen on the
	// primary; nil if that is unknown.
	LagBytes *uint64 `json:"lag_bytes"`
	Misses   int     `json:"misses"` // in a row
	// LastAnswer is when the last question that was answered was sent.
	LastAnswer    time.Time `json:"last_answer,omitzero"`
	ProbeSeconds  float64   `json:"probe_seconds"`  // that the last answer took
	ServerVersion int       `json:"server_version"` // server_version_num, such as 180006
}

// Sessions counts the client connections.
type Sessions struct {
	Open    int64 `json:"open"`    // held ones among them
	Held    int64 `json:"held"`    // waiting for a primary
	Total   int64 `json:"total"`   // accepted since the start
	Refused int64 `json:"refused"` // of the total, answered with an error by the proxy
}

// Failover is the report of one failover.
type Failover struct {
	Epoch   cluster.Epoch `json:"epoch"`
	From    string        `json:"from"`
	To      string        `json:"to"` // as From when the old primary came back and was kept
	Cause   string        `json:"cause"`
	Started time.Time     `json:"started"` // the first sign of trouble
	Phases  []Phase       `json:"phases"`
	Seconds float64       `json:"seconds"` // from Started until sessions went on
	// LastSeen is the last position seen on From, and LastSeenAt when.
	LastSeen   cluster.Position `json:"last_seen"`
	LastSeenAt time.Time        `json:"last_seen_at,omitzero"`
	// PromotedAt is how far To had replayed when it was promoted.
	PromotedAt cluster.Position `json:"promoted_at"`
	// BytesAtRisk is the WAL between PromotedAt and LastSeen.
	BytesAtRisk uint64 `json:"bytes_at_risk"`
	// Verdict is "zero", "at risk" or "unknown".
	Verdict string `json:"verdict"`
}

// Phase is one part of a failover.
type Phase struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

// Detection is the time in which a dead primary is declared so, from the
// settings.
type Detection struct {
	CrashSeconds float64 `json:"crash_seconds"` // after its connections broke
	HangSeconds  float64 `json:"hang_seconds"`  // after it fell silent, at worst
}

// Served reports whether new sessions are sent to a primary.
func (s Status) Served() bool { return s.Primary != "" && !s.Held && s.Address != "" }

// Why says why no primary is served, in a sentence that is never empty.
func (s Status) Why() string {
	switch {
	case s.Reason != "":
		return s.Reason
	case s.State != "":
		return "no primary is served: the proxy is " + s.State
	}
	return "no primary is served"
}

// member returns the member of that name, or nil.
func (s Status) member(name string) *Member {
	for i := range s.Members {
		if s.Members[i].Name == name {
			return &s.Members[i]
		}
	}
	return nil
}

// notReplica says why m cannot be read from as a standby of the primary; empty if
// it can.
func (s Status) notReplica(m *Member) string {
	switch {
	case m.Reach != cluster.ReachAnswered.String():
		if m.Error != "" {
			return m.Error
		}
		return m.Reach
	case m.Role != cluster.RoleStandby.String():
		return "it is not a standby"
	case s.System == 0 || m.System != s.System:
		return "it belongs to another database cluster"
	case m.Timeline != s.Timeline:
		return "it is on another timeline than the primary"
	case !m.Streaming:
		return "it is not streaming"
	}
	return ""
}
