package cluster

import (
	"fmt"
	"time"
)

// Record says who is primary. It is the truth of the cluster, written durably
// by whoever holds the right to decide; every pointer in memory is a copy of it.
//
// A Record is either serving (Held is false: clients are sent to Primary) or
// held (Held is true: nobody is served, and a failover away from Primary is
// under way). The zero Record means that nothing was ever decided.
type Record struct {
	// Revision grows by one with every write. A copy with a lower revision is
	// out of date and changes nothing.
	Revision uint64 `json:"revision"`
	// Epoch grows when a primary is given up, not when the next one is found:
	// the held Record and the serving Record that ends it share an epoch.
	Epoch Epoch `json:"epoch"`
	// System is the cluster's identity; a server with another one is never
	// routed to.
	System SystemID `json:"system,string"`
	// Timeline is that of Primary.
	Timeline TimelineID `json:"timeline"`
	// Primary is the name of the member that is served; in a held Record the
	// one that was given up last.
	Primary string `json:"primary"`
	// Held means that no member may be served.
	Held bool `json:"held,omitempty"`
	// Candidate is set in a held Record before pg_promote is called on a
	// member for the first time: from then on that member may become a
	// primary at any moment, whatever else happens.
	Candidate string `json:"candidate,omitempty"`
	// Drained is how far Candidate had replayed, with nothing more to come,
	// before it was promoted. What it lacks of Seen is lost with Primary.
	Drained Position `json:"drained,omitzero"`
	// Seen is the last position seen on Primary, and SeenAt when it was asked
	// for. It bounds and reports what an asynchronous failover may lose. In a
	// serving Record it may be some seconds old.
	Seen   Position  `json:"seen"`
	SeenAt time.Time `json:"seen_at,omitzero"`
	// SyncSet names the standbys that provably have every acknowledged commit.
	// Empty while durability is async.
	SyncSet []string `json:"sync_set,omitempty"`
}

// IsZero reports whether nothing was ever decided.
func (r Record) IsZero() bool { return r.Revision == 0 }

// Newer reports whether r replaces old.
func (r Record) Newer(old Record) bool { return r.Revision > old.Revision }

// Check says what is wrong with a Record, or nil. A Record that fails it was
// never written by this program.
func (r Record) Check() error {
	switch {
	case r.Revision == 0:
		return fmt.Errorf("revision is zero")
	case r.Epoch == 0:
		return fmt.Errorf("epoch is zero")
	case r.System == 0:
		return fmt.Errorf("system identifier is zero")
	case r.Timeline == 0:
		return fmt.Errorf("timeline is zero")
	case r.Primary == "":
		return fmt.Errorf("no primary is named")
	case r.Candidate != "" && !r.Held:
		return fmt.Errorf("a candidate (%s) is named though nothing is held", r.Candidate)
	}
	return nil
}

// String is for logs and messages.
func (r Record) String() string {
	if r.IsZero() {
		return "no record"
	}
	s := fmt.Sprintf("epoch %d, timeline %d, primary %s", r.Epoch, r.Timeline, r.Primary)
	if r.Held {
		s += " given up"
	}
	if r.Candidate != "" {
		s += ", candidate " + r.Candidate
	}
	return s
}
