package pgwire

import "fmt"

// ScramServer lets one client log in, by the rules of PostgreSQL's
// src/backend/libpq/auth-scram.c: First, then Final, each once. It does no I/O.
// Whether the role may log in at all is not its business.
type ScramServer struct {
	verifier Verifier
	endpoint []byte
	nonce    string

	// What First read and answered, for Final. No challenge: Final is not due.
	first     clientFirst
	challenge string
}

// NewScramServer checks a client against v. endpoint is the hash of the
// certificate that it was shown (Endpoint); nil without TLS, and then there is no
// channel binding.
func NewScramServer(v Verifier, endpoint []byte) *ScramServer {
	return &ScramServer{verifier: v, endpoint: endpoint, nonce: newNonce()}
}

// Mechanisms are what the client may choose of, the better one first.
func (s *ScramServer) Mechanisms() []string {
	if s.endpoint == nil {
		return []string{ScramPlain}
	}
	return []string{ScramPlus, ScramPlain}
}

// First answers the client's first message with a challenge. The error is a
// *ProtocolError, to be told to the client.
func (s *ScramServer) First(mechanism string, data []byte) (reply []byte, err error) {
	first, err := parseClientFirst(data)
	if err == nil {
		err = s.checkBinding(mechanism, first.flag)
	}
	if err != nil {
		return nil, err
	}
	s.first = first
	s.challenge = fmt.Sprintf("r=%s%s,s=%s,i=%d", first.nonce, s.nonce, encode64(s.verifier.salt), s.verifier.iterations)
	return []byte(s.challenge), nil
}

// checkBinding holds the client's flag to the mechanism that it chose, and to
// what it was offered: whoever changed the offer on its way is noticed here.
func (s *ScramServer) checkBinding(mechanism string, flag byte) error {
	switch {
	case mechanism != ScramPlain && (mechanism != ScramPlus || s.endpoint == nil):
		return violation("client selected an invalid SASL authentication mechanism")
	case mechanism == ScramPlus && flag != 'p':
		return malformed("%s was selected, but there is no channel binding", ScramPlus)
	case mechanism == ScramPlain && flag == 'p':
		return malformed("%s was selected, but there is channel binding", ScramPlain)
	case flag == 'y' && s.endpoint != nil:
		return unauthorized("SCRAM channel binding negotiation error")
	}
	return nil
}

// Final checks the client's proof. It returns the answer that ends the exchange,
// and the ClientKey, which is the caller's to wipe. The error is ErrScramFailed
// for a wrong password, or a *ProtocolError; either ends the exchange.
func (s *ScramServer) Final(data []byte) (reply []byte, key Key, err error) {
	challenge := s.challenge
	s.challenge = "" // one proof for a challenge
	if challenge == "" {
		return nil, Key{}, violation("unexpected SCRAM message")
	}
	final, err := parseClientFinal(data)
	if err == nil {
		err = s.checkFinal(final)
	}
	if err != nil {
		return nil, Key{}, err
	}
	signed := authMessage(s.first.bare, challenge, final.withoutProof)
	if key, err = s.verifier.keyOf(final.proof, signed); err != nil {
		return nil, Key{}, err
	}
	signature := s.verifier.sign(signed)
	return []byte("v=" + encode64(signature[:])), key, nil
}

func (s *ScramServer) checkFinal(m clientFinal) error {
	bound := s.first.flag == 'p'
	header := []byte(s.first.header)
	if bound {
		header = append(header, s.endpoint...)
	}
	switch ok := equal([]byte(m.binding), []byte(encode64(header))); {
	case !ok && bound:
		return unauthorized("SCRAM channel binding check failed")
	case !ok:
		return violation("unexpected SCRAM channel-binding attribute in client-final-message")
	case !equal([]byte(m.nonce), []byte(s.first.nonce+s.nonce)):
		return violation("invalid SCRAM response: nonce does not match")
	}
	return nil
}

func unauthorized(message string) error { return &ProtocolError{Code: "28000", Message: message} }
