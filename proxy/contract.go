package proxy

import (
	"errors"
	"time"

	"pgfailproxy/pgwire"
	"pgfailproxy/relay"
)

// What a client is told when its session ends for another reason than its own is
// said in docs/clients.md. The SQLSTATE says what became of its work:
const (
	// codeSessionLost is admin_shutdown: nothing was under way.
	codeSessionLost = "57P01"
	// codeRolledBack is serialization_failure: all that was under way was surely
	// rolled back, or was without effect, and can be tried again.
	codeRolledBack = "40001"
	// codeInDoubt is transaction_resolution_unknown: it may have been committed.
	codeInDoubt = "08007"
	// codeIdle is idle_session_timeout.
	codeIdle = "57P05"
)

// owed is the SQLSTATE of what is owed to the client when the server is lost, and
// got so many bytes of the client's stream.
func (t *tracker) owed(got int64) string {
	switch {
	case t.walsender:
		return codeSessionLost
	case t.inDoubt(got):
		return codeInDoubt
	case t.busy() || t.status != outside:
		return codeRolledBack
	}
	return codeSessionLost
}

// farewell tells the client why its session ends, and what became of its work. In
// the middle of a message nothing can be said: the connection is closed.
func (s *session) farewell(r relay.Result, cause error) {
	if s.server.opts.Passthrough {
		return
	}
	if r.Unseen[relay.B] > 0 {
		s.told = "cut"
	} else {
		e := s.lastWord(r.Moved[relay.A], cause)
		s.told = e.Code
		s.server.say(r.Conn[relay.A], r.Unwritten[relay.B], e)
	}
	s.server.metrics.told.WithLabelValues(s.told).Inc()
}

// lastWord is the error for a session that ends for cause when its server got so
// many bytes of the client's stream.
func (s *session) lastWord(got int64, cause error) pgwire.Error {
	var gone *GoneError
	code := s.tracker.owed(got)
	// psycopg2 and what builds on it know a lost connection by these first words.
	e := pgwire.Error{Code: code, Message: "terminating connection because "}
	switch {
	case errors.As(cause, &gone):
		e.Message += "of a failover of the primary server"
		e.Detail = s.link.left(gone.At, true)
	case errors.Is(cause, ErrServerClosed):
		e.Message += "the proxy is shutting down"
		e.Detail = "The proxy was told to stop, and the session did not end in time."
	case errors.Is(cause, errIdle) && code == codeSessionLost:
		return pgwire.Error{Code: codeIdle, Message: "terminating connection due to idle-session timeout",
			Detail: "The proxy's setting client_idle is " + s.server.opts.ClientIdle.String() + "."}
	case errors.Is(cause, errIdle): // it began to work in the very moment
		e.Message += "it was idle for too long"
		e.Detail = "The proxy's setting client_idle is " + s.server.opts.ClientIdle.String() + "."
	default:
		e.Message += "the connection to the primary server was lost"
		e.Detail = s.link.left(time.Now(), false)
	}
	switch code {
	case codeSessionLost:
		if !s.tracker.walsender {
			e.Detail += " Nothing was under way."
		}
		e.Hint = "Connect again: new connections go to the primary, or wait for one."
	case codeRolledBack:
		e.Message += ", and the transaction was rolled back"
		e.Detail += " What had been begun was not committed."
		e.Hint = "Connect again and retry the transaction."
	case codeInDoubt:
		e.Message += ", and it is unknown whether the transaction was committed"
		e.Detail += " The server had been given all of it, and had not answered."
		e.Hint = "Connect again and look whether its changes are there before you retry."
	}
	return e
}
