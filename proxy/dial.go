package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"time"

	"pgfailproxy/pgwire"
)

// ServerTLS is how a member is spoken to. The zero value is without TLS.
type ServerTLS struct {
	Config *tls.Config
	// Optional: a member that has no TLS is spoken to without (sslmode=prefer).
	Optional bool
}

// link is a server that has taken a client's packet.
type link struct {
	route *Route
	conn  net.Conn
	leaf  *x509.Certificate // that the server showed; nil without TLS
	// answer is the server's answer so far, for the client: one byte to a
	// request for TLS, the first message to a start-up packet, nothing to a TLS
	// handshake.
	answer []byte
	ahead  []byte // what else was read of it
	key    []byte // the server's for cancel requests: process id and secret
}

// left is the detail of an error for a client whose server is gone: which it was,
// and when.
func (l *link) left(when time.Time, givenUp bool) string {
	what := "closed the connection"
	if givenUp {
		what = "was given up as the primary"
	}
	return fmt.Sprintf("Server %q (%s) %s at %s.", l.route.Member, l.route.Addr.Address, what, when.UTC().Format("2006-01-02 15:04:05.000 MST"))
}

// connect connects l to its route's member; with TLS, if followed sessions are
// to use it there. ctx bounds all of it.
func (s *Server) connect(ctx context.Context, l *link, followed bool) error {
	conn, err := s.opts.Dial(ctx, l.route.Addr)
	if err != nil {
		return err
	}
	l.conn = conn
	if !followed || s.opts.ServerTLS == nil || l.route.Addr.Network == "unix" {
		return nil
	}
	t := s.opts.ServerTLS(l.route.Member)
	if t.Config == nil {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(longPast) })
	err = l.secure(ctx, t)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		l.conn = nil
	}
	return err
}

// secure asks the server for TLS and does the handshake.
func (l *link) secure(ctx context.Context, t ServerTLS) error {
	if _, err := l.conn.Write(pgwire.SSLRequest()); err != nil {
		return err
	}
	var answer [1]byte
	if _, err := l.conn.Read(answer[:]); err != nil {
		return err
	}
	switch {
	case answer[0] == 'N' && t.Optional:
		return nil
	case answer[0] == 'N':
		return fmt.Errorf("%s does not support TLS, and its connection string demands it", l.route.Member)
	case answer[0] != 'S':
		return fmt.Errorf("%s answered %q to a request for TLS", l.route.Member, answer[0])
	}
	conn := tls.Client(l.conn, t.Config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS to %s: %w", l.route.Member, err)
	}
	l.conn = conn
	if certs := conn.ConnectionState().PeerCertificates; len(certs) > 0 {
		l.leaf = certs[0]
	}
	return nil
}
