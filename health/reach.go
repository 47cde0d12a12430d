package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"

	"pgfailproxy/cluster"
)

// reach tells what an error of a probe says about the member, and in which
// words. fresh says that the connection was made for this probe.
func reach(err error, fresh bool) (cluster.Reach, string) {
	if err == nil {
		return cluster.ReachAnswered, ""
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return reachOf(pg, fresh)
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		// Where names are kept for running containers only, a name that is gone
		// is how a server that is gone looks. Any other failure of the resolver
		// says nothing of the server.
		if dns.IsNotFound {
			return cluster.ReachRefused, fmt.Sprintf("no such host %q", dns.Name)
		}
		return cluster.ReachSilent, fmt.Sprintf("resolve %q: %s", dns.Name, dns.Err)
	}
	var timeout net.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return cluster.ReachSilent, "no answer in time"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTDOWN):
		return cluster.ReachSilent, "no route to host"
	}
	text, known := connectionEnd(err)
	switch {
	case known && fresh:
		return cluster.ReachRefused, text
	case known:
		return cluster.ReachLost, text
	}
	return cluster.ReachFailed, plain(err)
}

// connectionEnd says in which words a connection was refused or ended, if err
// is that.
func connectionEnd(err error) (string, bool) {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused", true
	case errors.Is(err, os.ErrNotExist):
		return "its socket does not exist", true
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNABORTED):
		return "connection reset", true
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return "connection closed", true
	}
	return "", false
}

// reachOf judges an error that the server itself sent. SQLSTATE classes: see
// the PostgreSQL manual, appendix A.
func reachOf(pg *pgconn.PgError, fresh bool) (cluster.Reach, string) {
	text := fmt.Sprintf("%s (SQLSTATE %s)", pg.Message, pg.Code)
	switch {
	case pg.Code == "57P03" && strings.Contains(pg.Message, "shutting down"):
		// The same code as "starting up". The text is the server's, and may be
		// in another language: then a shutdown counts as starting until the
		// server refuses connections, a moment later.
		return cluster.ReachRefused, text
	case pg.Code == "57P03":
		return cluster.ReachStarting, text
	case pg.Code == "53300":
		return cluster.ReachFull, text
	case strings.HasPrefix(pg.Code, "57P") && !fresh:
		// Our connection was terminated, by an administrator, a shutdown or a
		// crash of a neighbour: which of them, the next question will tell.
		return cluster.ReachLost, text
	}
	for _, class := range []string{"53", "57", "58", "XX"} { // no resources, intervention, system error, internal error
		if strings.HasPrefix(pg.Code, class) {
			return cluster.ReachRefused, text
		}
	}
	return cluster.ReachFailed, text
}

// plain returns the innermost text of err. pgconn's outer texts name user and
// database and repeat themselves; the connection string is never in them.
func plain(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return strings.Join(strings.Fields(err.Error()), " ")
		}
		err = inner
	}
}
