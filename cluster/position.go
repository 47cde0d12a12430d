package cluster

import (
	"fmt"
	"strconv"
	"strings"
)

// LSN is a position in PostgreSQL's write-ahead log, in bytes from the start of
// the cluster. Zero means unknown: PostgreSQL never writes there
// (InvalidXLogRecPtr, src/include/access/xlogdefs.h).
type LSN uint64

// ParseLSN reads PostgreSQL's own notation, such as 16/B374D848.
func ParseLSN(s string) (LSN, error) {
	high, low, ok := strings.Cut(s, "/")
	if !ok {
		return 0, fmt.Errorf("parse LSN %q: no slash", s)
	}
	h, err := strconv.ParseUint(high, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("parse LSN %q: %w", s, err)
	}
	l, err := strconv.ParseUint(low, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("parse LSN %q: %w", s, err)
	}
	return LSN(h<<32 | l), nil
}

// String returns PostgreSQL's notation.
func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint64(l)>>32, uint32(l)) }

// MarshalText and UnmarshalText use PostgreSQL's notation, so that a person can
// compare a Record or a status page with what psql shows.
func (l LSN) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (l *LSN) UnmarshalText(b []byte) error {
	v, err := ParseLSN(string(b))
	if err != nil {
		return err
	}
	*l = v
	return nil
}

// Behind returns how many bytes of WAL l lacks to reach other; zero when it
// lacks none.
func (l LSN) Behind(other LSN) uint64 {
	if l >= other {
		return 0
	}
	return uint64(other - l)
}

// TimelineID numbers the branches of a cluster's WAL: each promotion begins a
// higher one. Zero means unknown.
type TimelineID uint32

// Position is a place in the history of a cluster. An LSN alone is not one: two
// servers may have the same LSN on different timelines and different data.
type Position struct {
	Timeline TimelineID `json:"timeline"`
	LSN      LSN        `json:"lsn"`
}

// String returns timeline and LSN as timeline:LSN, or "unknown".
func (p Position) String() string {
	if p.IsZero() {
		return "unknown"
	}
	return fmt.Sprintf("%d:%s", p.Timeline, p.LSN)
}

// IsZero reports whether nothing is known of the position.
func (p Position) IsZero() bool { return p == Position{} }

// SystemID is a cluster's system identifier, made by initdb and shared by a
// primary and its standbys. Zero means unknown.
type SystemID uint64

// Epoch counts the terms of office: each decision to give up a primary begins
// the next. At most one member is served in an epoch. The first is 1.
type Epoch uint64
