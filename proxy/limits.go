package proxy

import (
	"fmt"
	"sync"

	"pgfailproxy/pgwire"
)

// limits counts the sessions of each role and of each database that are logged
// in: who is not could name any.
type limits struct {
	perRole, perDatabase int // 0 means no limit

	mu        sync.Mutex // guards what follows
	roles     map[string]int
	databases map[string]int
}

func newLimits(o Options) limits {
	return limits{perRole: o.MaxPerRole, perDatabase: o.MaxPerDatabase, roles: map[string]int{}, databases: map[string]int{}}
}

// admit counts a session that has proved who it is, or returns why there is no
// room for it.
func (s *Server) admit(sess *session) *pgwire.Error {
	l := &s.limits
	if l.perRole == 0 && l.perDatabase == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	full := func(of, name, setting string, most int) *pgwire.Error {
		return &pgwire.Error{Code: "53300", Message: fmt.Sprintf("too many connections for %s %q", of, name),
			Detail: fmt.Sprintf("The proxy serves at most %d of one %s at a time.", most, of),
			Hint:   fmt.Sprintf("Raise %s of the proxy, or use a pool.", setting)}
	}
	switch {
	case l.perRole > 0 && l.roles[sess.who.user] >= l.perRole:
		return full("role", sess.who.user, "max_role_connections", l.perRole)
	case l.perDatabase > 0 && l.databases[sess.who.database] >= l.perDatabase:
		return full("database", sess.who.database, "max_database_connections", l.perDatabase)
	}
	l.roles[sess.who.user]++
	l.databases[sess.who.database]++
	sess.counted = true
	return nil
}

// give makes a session's room free.
func (l *limits) give(sess *session) {
	if !sess.counted {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for names, name := range map[*map[string]int]string{&l.roles: sess.who.user, &l.databases: sess.who.database} {
		if (*names)[name]--; (*names)[name] == 0 {
			delete(*names, name)
		}
	}
}
