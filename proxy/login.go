package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"pgfailproxy/hba"
	"pgfailproxy/pgwire"
)

// login is what goes on between a server's first answer and its first
// ReadyForQuery.
type login struct {
	*session
	link    *link
	method  hba.Method
	replies *bufio.Reader // of link.conn
	out     []byte        // for the client, not yet written
	// authenticated: the server said so, and what comes from the client is not
	// about that any more.
	authenticated bool
}

// errRefused is a login that ended with an error that the client was told.
var errRefused = errors.New("login refused")

// login passes the authentication on, or does it in the server's place, until
// the server is ready. Then the link has what was read beyond that.
func (s *session) login(l *link, method hba.Method) error {
	in := &login{session: s, link: l, method: method, replies: bufio.NewReaderSize(l.conn, readAhead)}
	due := s.due()
	s.client.SetDeadline(due)
	l.conn.SetDeadline(due)
	// A server that is given up, or a proxy that closes, ends this.
	stop := context.AfterFunc(l.route.Context(), func() { l.conn.SetDeadline(longPast) })
	defer stop()
	err := in.run()
	switch {
	case err == nil:
		l.ahead = buffered(in.replies)
		return nil
	case errors.Is(err, errRefused), errors.Is(err, errClientGone):
		return err
	}
	return in.failed(err)
}

// failed tells the client of a login that broke off.
func (in *login) failed(err error) error {
	var p *pgwire.ProtocolError
	switch {
	case errors.As(err, &p):
		in.refuse("protocol", pgwire.Error{Code: p.Code, Message: p.Message})
	case in.link.route.Context().Err() != nil, errors.Is(err, errServerLost):
		in.refuse("server_lost", pgwire.Error{Code: "57P03", Message: "the server was lost during the login",
			Detail: in.link.left(time.Now(), in.link.route.Context().Err() != nil), Hint: "Connect again."})
	case errors.Is(err, os.ErrDeadlineExceeded):
		return in.badStart(err)
	}
	return err
}

// run takes messages of the server's, the first of which is the link's answer.
func (in *login) run() error {
	raw := in.link.answer
	in.link.answer = nil
	for {
		ready, err := in.take(raw)
		if err != nil {
			return err
		}
		if ready || in.replies.Buffered() == 0 {
			if err := in.flush(); err != nil {
				return err
			}
		}
		if ready {
			return nil
		}
		if raw, err = in.fromServer(); err != nil {
			return err
		}
	}
}

func (in *login) flush() error {
	if len(in.out) == 0 {
		return nil
	}
	_, err := in.client.Write(in.out)
	in.out = in.out[:0]
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return errClientGone
	}
	return err
}

// fromServer reads one message. The error is errServerLost if there is none.
func (in *login) fromServer() ([]byte, error) {
	_, raw, err := pgwire.ReadMessage(in.replies)
	var p *pgwire.ProtocolError
	if err != nil && !errors.As(err, &p) && !errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("%w: %w", errServerLost, err)
	}
	return raw, err
}

// fromClient reads one message, which must be an answer to a request for
// authentication.
func (in *login) fromClient() ([]byte, error) {
	if err := in.flush(); err != nil {
		return nil, err
	}
	kind, raw, err := pgwire.ReadMessage(in.in)
	var p *pgwire.ProtocolError
	switch {
	case errors.As(err, &p), errors.Is(err, os.ErrDeadlineExceeded):
		return nil, err
	case err != nil || kind == 'X':
		return nil, errClientGone // or it asks its user for the password and comes again
	case kind != 'p':
		return nil, &pgwire.ProtocolError{Code: "08P01", Message: fmt.Sprintf("expected password response, got message type %d", kind)}
	}
	return raw, nil
}

// take handles one message of the server's, and reports whether it was
// ReadyForQuery.
func (in *login) take(raw []byte) (ready bool, _ error) {
	switch kind := raw[0]; {
	case kind == 'E':
		in.refused(raw)
		return false, errRefused
	case kind == 'R' && !in.authenticated:
		return false, in.authentication(raw)
	case !in.authenticated && kind != 'N' && kind != 'v':
		return false, fmt.Errorf("%w: unexpected message %q before authentication", errServerLost, kind)
	case kind == 'S':
		in.takeParameter(raw[5:])
	case kind == 'K':
		var err error
		if raw, err = in.takeKey(raw); err != nil {
			return false, err
		}
	case kind == 'Z':
		ready = true
	}
	in.out = append(in.out, raw...)
	return ready, nil
}

// refused passes the server's own refusal on.
func (in *login) refused(raw []byte) {
	in.debug("server refused the login", "member", in.link.route.Member, "cause", pgwire.ErrorText(raw), "code", pgwire.SQLState(raw))
	in.server.sayRaw(in.client, in.out, raw)
}

// authentication handles what the server wants for a proof.
func (in *login) authentication(raw []byte) error {
	kind, data, err := pgwire.ParseAuth(raw[5:])
	if err != nil {
		return err
	}
	if in.method != hba.None {
		return in.terminate(kind, data)
	}
	switch kind {
	case pgwire.AuthOK:
		return in.admit(raw)
	case pgwire.AuthSASLFinal:
		in.out = append(in.out, raw...)
		return nil
	case pgwire.AuthSASL:
		if raw, err = in.offer(raw, data); err != nil {
			return err
		}
	}
	in.out = append(in.out, raw...)
	answer, err := in.fromClient()
	if err != nil {
		return err
	}
	if _, err := in.link.conn.Write(answer); err != nil {
		return fmt.Errorf("%w: %w", errServerLost, err)
	}
	return nil
}

// offer is the server's offer of mechanisms, as the client may see it. Channel
// binding is to the certificate that the client was shown: without TLS there is
// none, and libpq takes an offer of it for an attack.
func (in *login) offer(raw, data []byte) ([]byte, error) {
	offered, err := pgwire.SASLMechanisms(data)
	if err != nil {
		return nil, err
	}
	plus := slices.Index(offered, pgwire.ScramPlus)
	switch {
	case plus < 0 || in.who.tls && in.leaf.Equal(in.link.leaf):
		return raw, nil
	case in.who.tls:
		in.refuse("certificate", pgwire.Error{Code: "28000",
			Message: "SCRAM authentication cannot be relayed: the server's TLS certificate is not the proxy's",
			Detail:  fmt.Sprintf("A login is bound to the certificate that the client sees, and %s has another one.", in.link.route.Member),
			Hint:    "Set auth: terminate, or sslmode=disable for this member, or give the proxy and its members the same certificate."})
		return nil, errRefused
	}
	return pgwire.AskSASL(slices.Delete(offered, plus, plus+1))
}

// admit lets a client in that proved who it is, if there is room for its role and
// database. raw is the server's word for it.
func (in *login) admit(raw []byte) error {
	if e := in.server.admit(in.session); e != nil {
		in.refuse("too_many_clients", *e)
		return errRefused
	}
	in.authenticated = true
	in.out = append(in.out, raw...)
	return nil
}

func (in *login) takeParameter(body []byte) {
	if name, value, ok := pgwire.ParameterStatus(body); ok && string(name) == "application_name" {
		in.mu.Lock()
		defer in.mu.Unlock()
		in.who.application = string(value)
	}
}

// takeKey keeps the server's key for cancel requests and returns a message with
// one of ours, which no server knows.
func (in *login) takeKey(raw []byte) ([]byte, error) {
	switch {
	case in.key != nil:
		return nil, &pgwire.ProtocolError{Code: "08P01", Message: "the server sent a second key for cancel requests"}
	case len(raw) < 5+4+1:
		return raw, nil // a server that cannot cancel
	}
	in.link.key = raw[5:]
	return in.server.keys.issue(in.session, raw), nil
}
