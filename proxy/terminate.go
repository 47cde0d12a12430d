package proxy

import (
	"context"
	"errors"
	"fmt"

	"pgfailproxy/cluster"
	"pgfailproxy/hba"
	"pgfailproxy/pgwire"
)

// Terminate has the proxy itself check who a client is, and log in to the server
// as the client.
type Terminate struct {
	// Rules say who may log in, and how. The server sees the proxy only.
	Rules     hba.Rules
	Verifiers Verifiers
}

// Verifiers looks up what proves a role's password.
type Verifiers interface {
	// Lookup asks the member at addr for the SCRAM verifier of a role. It is empty
	// if the role does not exist or may not log in now.
	Lookup(ctx context.Context, member string, addr cluster.Addr, role string) (string, error)
}

// proof is what a client proved by its password: enough to log in as it.
type proof struct {
	verifier pgwire.Verifier
	key      pgwire.Key
}

// terminate answers what the server wants for a proof, after the client gave one
// to us.
func (in *login) terminate(kind pgwire.AuthKind, data []byte) error {
	var p *proof
	if in.method == hba.ScramSHA256 {
		var err error
		if p, err = in.challenge(); err != nil {
			return err
		}
		defer p.key.Wipe()
	}
	switch {
	case kind == pgwire.AuthOK:
	case kind == pgwire.AuthSASL && p != nil:
		if err := in.prove(p, data); err != nil {
			return in.cannot(err)
		}
	case kind == pgwire.AuthSASL:
		return in.cannot(fmt.Errorf("it wants the role's password, which the method %s of client_hba does not give to the proxy", in.method))
	default:
		return in.cannot(fmt.Errorf("it wants a proof of kind %d: with auth: terminate, the method in its pg_hba.conf for the proxy's address must be scram-sha-256", kind))
	}
	ok, err := pgwire.Authenticated()
	if err != nil {
		return err
	}
	return in.admit(ok)
}

// challenge has the client prove its password.
func (in *login) challenge() (*proof, error) {
	v, err := in.verifier()
	if err != nil {
		return nil, err
	}
	var endpoint []byte
	if in.who.tls {
		endpoint = pgwire.Endpoint(in.leaf)
	}
	scram := pgwire.NewScramServer(v, endpoint)
	ask, err := pgwire.AskSASL(scram.Mechanisms())
	if err != nil {
		return nil, err
	}
	answer, err := in.ask(ask)
	if err != nil {
		return nil, err
	}
	mechanism, data, err := pgwire.SASLInitialResponse(answer)
	if err != nil {
		return nil, err
	}
	if data, err = scram.First(mechanism, data); err != nil {
		return nil, err
	}
	if ask, err = pgwire.ContinueSASL(data); err != nil {
		return nil, err
	}
	if answer, err = in.ask(ask); err != nil {
		return nil, err
	}
	data, key, err := scram.Final(answer)
	if errors.Is(err, pgwire.ErrScramFailed) {
		in.refuse("password", pgwire.Error{Code: "28P01", Message: fmt.Sprintf("password authentication failed for user %q", in.who.user)})
		return nil, errRefused
	}
	if err != nil {
		return nil, err
	}
	final, err := pgwire.FinishSASL(data)
	in.out = append(in.out, final...)
	return &proof{v, key}, err
}

// ask sends the client a request and returns the body of its answer.
func (in *login) ask(request []byte) ([]byte, error) {
	in.out = append(in.out, request...)
	raw, err := in.fromClient()
	if err != nil {
		return nil, err
	}
	return raw[5:], nil
}

// verifier returns what to check the client against. For a role that may not log
// in it is one that nothing matches, so that a stranger cannot tell.
func (in *login) verifier() (pgwire.Verifier, error) {
	l := in.link
	ctx, cancel := context.WithDeadline(l.route.Context(), in.due())
	defer cancel()
	text, err := in.server.opts.Terminate.Verifiers.Lookup(ctx, l.route.Member, l.route.Addr, in.who.user)
	var v pgwire.Verifier
	if err == nil && text != "" {
		if v, err = pgwire.ParseVerifier(text); err == nil {
			return v, nil
		}
		in.server.log.Warn("a role cannot log in: its password is not stored as scram-sha-256: set it again with password_encryption = scram-sha-256", "role", in.who.user, "cause", err)
		text, err = "", nil // a stranger must not learn that there is such a role
	}
	switch {
	case err != nil && ctx.Err() == nil:
		in.server.log.Error("clients cannot be logged in", "session", in.id, "member", l.route.Member, "cause", err)
		in.refuse("verifier", pgwire.Error{Code: "28000", Message: fmt.Sprintf("the proxy cannot check the password of user %q", in.who.user), Hint: "The log of the proxy says why."})
		return v, errRefused
	case err != nil:
		return v, fmt.Errorf("%w: %w", errServerLost, err)
	}
	return pgwire.MockVerifier(in.server.mock[:], in.who.user), nil
}

// prove logs in to the server with what the client proved.
func (in *login) prove(p *proof, data []byte) error {
	offered, err := pgwire.SASLMechanisms(data)
	if err != nil {
		return err
	}
	var endpoint []byte
	if in.link.leaf != nil {
		endpoint = pgwire.Endpoint(in.link.leaf)
	}
	scram := pgwire.NewScramClient(p.key, p.verifier, endpoint)
	mechanism, first, err := scram.First(offered)
	if err != nil {
		return err
	}
	send, err := pgwire.BeginSASL(mechanism, first)
	if err != nil {
		return err
	}
	if data, err = in.tell(send, pgwire.AuthSASLContinue); err != nil {
		return err
	}
	final, err := scram.Final(data)
	if err != nil {
		return err
	}
	if send, err = pgwire.AnswerSASL(final); err != nil {
		return err
	}
	if data, err = in.tell(send, pgwire.AuthSASLFinal); err != nil {
		return err
	}
	if err := scram.Verify(data); err != nil {
		return err
	}
	_, err = in.expect(pgwire.AuthOK)
	return err
}

// tell sends the server a message and expects its next request.
func (in *login) tell(message []byte, want pgwire.AuthKind) ([]byte, error) {
	if _, err := in.link.conn.Write(message); err != nil {
		return nil, fmt.Errorf("%w: %w", errServerLost, err)
	}
	return in.expect(want)
}

func (in *login) expect(want pgwire.AuthKind) ([]byte, error) {
	raw, err := in.fromServer()
	if err != nil {
		return nil, err
	}
	if raw[0] == 'E' {
		in.refused(raw)
		return nil, errRefused
	}
	if raw[0] != 'R' {
		return nil, fmt.Errorf("it sent a message %q in a SCRAM exchange", raw[0])
	}
	kind, data, err := pgwire.ParseAuth(raw[5:])
	if err == nil && kind != want {
		err = fmt.Errorf("it sent a request of kind %d in a SCRAM exchange, want %d", kind, want)
	}
	return data, err
}

// cannot tells a client that proved who it is that the server will not have it.
func (in *login) cannot(err error) error {
	if errors.Is(err, errRefused) || errors.Is(err, errServerLost) {
		return err
	}
	in.server.log.Error("the proxy cannot log in as its client", "session", in.id, "member", in.link.route.Member, "user", in.who.user, "cause", err)
	in.refuse("server_login", pgwire.Error{Code: "28000", Message: fmt.Sprintf("the proxy cannot log in to the server as user %q", in.who.user), Hint: "The log of the proxy says why."})
	return errRefused
}
