package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"pgfailproxy/hba"
	"pgfailproxy/pgwire"
)

// alpn is the application protocol of PostgreSQL over TLS. With direct TLS it is
// required, so that no other protocol's client can be led here.
const alpn = "postgresql"

// ClientTLS is how clients are spoken to over TLS.
type ClientTLS struct {
	// ForConnection returns the configuration for one connection and the
	// certificate that it shows, to which logins are bound.
	ForConnection func() (*tls.Config, *x509.Certificate)
	// Required: clients without TLS are refused.
	Required bool
}

// errUnencrypted is PostgreSQL's own answer to bytes that somebody may have
// slipped in before the encryption.
var errUnencrypted = &pgwire.ProtocolError{Code: "08P01", Message: "received unencrypted data after a request for encryption"}

// errHandshake is a TLS handshake that failed.
var errHandshake = errors.New("TLS handshake")

// startFollowed reads what the client wants, has a server take it, and logs it
// in. A cancel request is dealt with here: then there is no link.
func (s *session) startFollowed() (*link, error) {
	packet, err := s.greet()
	if err != nil {
		return nil, s.badStart(err)
	}
	if packet.Kind == pgwire.KindCancel {
		s.cancelRequest(packet.Raw)
		return nil, nil
	}
	s.identify(packet)
	method, refusal := s.method()
	if refusal != nil {
		s.refuse("client_hba", *refusal)
		return nil, errors.New(refusal.Message)
	}
	l, err := s.reach(packet, nil)
	if err != nil {
		return nil, s.unreached(packet, err)
	}
	s.become(StateAuthenticating)
	if err := s.login(l, method); err != nil {
		l.conn.Close()
		return nil, err
	}
	return l, nil
}

// greet reads and answers start-up packets until one begins a session or is a
// request to cancel. The client speaks TLS then, if it asked for it and may.
func (s *session) greet() (pgwire.Packet, error) {
	var askedGSS, askedTLS bool
	for {
		packet, err := s.readPacket()
		if err != nil {
			return packet, err
		}
		switch packet.Kind {
		case pgwire.KindGSS:
			// Never done: TLS is what is kept.
			if askedGSS || s.who.tls || s.in.Buffered() > 0 {
				return packet, errUnencrypted
			}
			askedGSS = true
			_, err = s.client.Write([]byte{'N'})
		case pgwire.KindSSL:
			if askedTLS || s.who.tls || s.in.Buffered() > 0 {
				return packet, errUnencrypted
			}
			askedTLS = true
			err = s.answerTLS()
		case pgwire.KindDirectTLS:
			if s.who.tls {
				return packet, errUnencrypted
			}
			err = s.directTLS()
		case pgwire.KindStartup:
			if t := s.server.opts.ClientTLS; t != nil && t.Required && !s.who.tls {
				return packet, &pgwire.ProtocolError{Code: "28000", Message: "SSL connection is required"}
			}
			return packet, nil
		default:
			return packet, nil
		}
		if err != nil {
			return packet, err
		}
	}
}

// answerTLS answers a request for TLS.
func (s *session) answerTLS() error {
	if s.server.opts.ClientTLS == nil {
		s.server.warnNoTLS()
		_, err := s.client.Write([]byte{'N'})
		return err
	}
	if _, err := s.client.Write([]byte{'S'}); err != nil {
		return err
	}
	return s.handshake(s.client)
}

// directTLS does the handshake that the client began with.
func (s *session) directTLS() error {
	if s.server.opts.ClientTLS == nil {
		s.server.warnNoTLS()
		s.server.refuse("no_tls")
		// A fatal alert, handshake_failure (RFC 8446 section 6): all that such a
		// client understands.
		s.client.SetWriteDeadline(time.Now().Add(farewell))
		s.client.Write([]byte{21, 3, 3, 0, 2, 2, 40})
		return errClientGone
	}
	if err := s.handshake(&readAheadConn{s.client, s.in}); err != nil {
		return err
	}
	if c := s.client.(*tls.Conn); c.ConnectionState().NegotiatedProtocol != alpn {
		s.server.refuse("tls_handshake")
		return fmt.Errorf("%w: direct TLS without the application protocol %q", errHandshake, alpn)
	}
	return nil
}

// readAheadConn is a connection of which a beginning was read into a buffer.
type readAheadConn struct {
	net.Conn
	in *bufio.Reader
}

func (c *readAheadConn) Read(p []byte) (int, error) { return c.in.Read(p) }

// CloseWrite lets the TLS connection on top end one direction.
func (c *readAheadConn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

func (s *session) handshake(over net.Conn) error {
	ctx, cancel := context.WithDeadline(s.server.drain, s.due())
	defer cancel()
	config, leaf := s.server.opts.ClientTLS.ForConnection()
	conn := tls.Server(over, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		s.server.refuse("tls_handshake")
		return fmt.Errorf("%w: %v", errHandshake, err) // whatever it was, nothing can be said to the client
	}
	s.client, s.in = conn, bufio.NewReaderSize(conn, readAhead)
	s.leaf, s.who.tls = leaf, true
	if certs := conn.ConnectionState().PeerCertificates; len(certs) > 0 {
		s.certName = certs[0].Subject.CommonName
	}
	return nil
}

// identify notes who the client says it is.
func (s *session) identify(p pgwire.Packet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.who.user, s.who.database, s.who.application = p.Param("user"), p.Param("database"), p.Param("application_name")
	switch p.Param("replication") {
	case "", "false", "off", "no", "0":
	case "database":
		s.who.replication = true
	default:
		s.who.replication, s.who.physical = true, true
	}
	if s.who.database == "" {
		s.who.database = s.who.user // as the server takes it
	}
}

// method returns how the client has to prove who it is. hba.None means that the
// server asks it. An error is for the client.
func (s *session) method() (hba.Method, *pgwire.Error) {
	t := s.server.opts.Terminate
	if t == nil {
		return hba.None, nil
	}
	var addr netip.Addr
	if a, err := netip.ParseAddrPort(s.peer); err == nil {
		addr = a.Addr()
	}
	m, ok := t.Rules.Match(hba.Client{TLS: s.who.tls, CertCN: s.certName, Addr: addr,
		Database: s.who.database, User: s.who.user, Replication: s.who.physical})
	if ok {
		return m, nil
	}
	encryption := "no encryption"
	if s.who.tls {
		encryption = "SSL encryption"
	}
	e := pgwire.Error{Code: "28000", Hint: "The rules of the proxy are its setting client_hba; the first that matches decides."}
	client := fmt.Sprintf("host %q, user %q, database %q, %s", addr, s.who.user, s.who.database, encryption)
	switch m {
	case hba.Reject:
		e.Message = "client_hba rejects connection for " + client
	case hba.Cert:
		e.Message = fmt.Sprintf("certificate authentication failed for user %q", s.who.user)
		e.Detail = fmt.Sprintf("The client's certificate has the common name %q.", s.certName)
		e.Hint = ""
	default:
		e.Message = "no client_hba entry for " + client
	}
	return m, &e
}
