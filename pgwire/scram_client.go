package pgwire

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ScramClient logs in to one server with a ClientKey in place of a password:
// First, Final, Verify, each once. It does no I/O, and it does not derive keys:
// no server can make it work.
type ScramClient struct {
	key      Key
	verifier Verifier
	endpoint []byte
	nonce    string

	header, bare string // what First said
	signed       string // what Final signed; empty: Verify is not due
}

// NewScramClient logs in with key, which stays the caller's. v is the verifier
// that the key was recovered with: by it the server is known. endpoint is the
// hash of the certificate that the server showed (Endpoint); nil without TLS.
func NewScramClient(key Key, v Verifier, endpoint []byte) *ScramClient {
	return &ScramClient{key: key, verifier: v, endpoint: endpoint, nonce: newNonce()}
}

// First chooses of what the server offered, the one with channel binding if that
// can be, and begins. The error is ErrKeyChanged when the key is not v's.
func (c *ScramClient) First(offered []string) (mechanism string, data []byte, err error) {
	if !c.verifier.fits(c.key) {
		return "", nil, ErrKeyChanged
	}
	plain, plus := slices.Contains(offered, ScramPlain), slices.Contains(offered, ScramPlus)
	switch {
	case plus && c.endpoint != nil:
		mechanism, c.header = ScramPlus, "p="+endpointBinding+",,"
	case plain && c.endpoint != nil:
		// It had better be true that the server offered no binding: it will
		// refuse this if somebody took that away from what it said.
		mechanism, c.header = ScramPlain, "y,,"
	case plain:
		mechanism, c.header = ScramPlain, "n,,"
	default:
		return "", nil, fmt.Errorf("the server offers %q to log in with: only %s can be done", offered, ScramPlain)
	}
	// PostgreSQL takes the name from the start-up packet and wants none here.
	c.bare = "n=,r=" + c.nonce
	return mechanism, []byte(c.header + c.bare), nil
}

// Final answers the server's challenge with a proof. The error is ErrKeyChanged
// when it asks for another key than ours, and then nothing is to be sent; or a
// *ProtocolError.
func (c *ScramClient) Final(data []byte) (reply []byte, err error) {
	if c.bare == "" {
		return nil, errors.New("SCRAM: Final without First")
	}
	challenge, err := parseServerFirst(data)
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(challenge.nonce, c.nonce) || len(challenge.nonce) == len(c.nonce) {
		return nil, violation("invalid SCRAM response: nonce does not match")
	}
	if !challenge.asks(c.verifier) {
		return nil, ErrKeyChanged
	}
	header := []byte(c.header)
	if c.header[0] == 'p' {
		header = append(header, c.endpoint...)
	}
	final := "c=" + encode64(header) + ",r=" + challenge.nonce
	c.signed = authMessage(c.bare, string(data), final)
	proof := c.key.prove(c.signed)
	return []byte(final + ",p=" + encode64(proof[:])), nil
}

// Verify looks at the server's last message: only who knows the verifier can
// have signed it. The error is ErrWrongServer, or a *ProtocolError. Without
// Verify the server is not to be trusted, whatever else it says.
func (c *ScramClient) Verify(data []byte) error {
	if c.signed == "" {
		return errors.New("SCRAM: Verify without Final")
	}
	text := string(data)
	if reason, refused := strings.CutPrefix(text, "e="); refused {
		return violation("the server ends the SCRAM exchange: %q", reason)
	}
	value, rest, err := expectAttribute(text, 'v')
	if err != nil {
		return err
	}
	got, ok := decodeDigest(value)
	if !ok || rest != "" {
		return malformed("malformed signature of the server")
	}
	if want := c.verifier.sign(c.signed); !equal(got[:], want[:]) {
		return ErrWrongServer
	}
	return nil
}
