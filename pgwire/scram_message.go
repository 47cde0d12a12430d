package pgwire

import (
	"bytes"
	"encoding/binary"

	"github.com/jackc/pgproto3/v2"
)

// AuthKind is what a server wants to authenticate a client ('R').
type AuthKind uint32

// The kinds that the proxy knows; AUTH_REQ_ of PostgreSQL's
// src/include/libpq/protocol.h.
const (
	AuthOK           AuthKind = 0
	AuthCleartext    AuthKind = 3
	AuthMD5          AuthKind = 5
	AuthSASL         AuthKind = 10
	AuthSASLContinue AuthKind = 11
	AuthSASLFinal    AuthKind = 12
)

// maxMechanisms bounds what a server may offer. PostgreSQL knows three.
const maxMechanisms = 16

// ParseAuth reads the body of a server's 'R': what it wants, and the data of
// that, which is a part of body.
func ParseAuth(body []byte) (kind AuthKind, data []byte, err error) {
	if len(body) < 4 {
		return 0, nil, violation("authentication request of the server is too short")
	}
	return AuthKind(binary.BigEndian.Uint32(body)), body[4:], nil
}

// SASLMechanisms reads the data of an AuthSASL: names that end in zero, and a
// zero.
func SASLMechanisms(data []byte) ([]string, error) {
	var all []string
	for len(data) > 0 && data[0] != 0 {
		name, rest, ok := bytes.Cut(data, []byte{0})
		if !ok || len(all) == maxMechanisms {
			return nil, violation("list of SASL mechanisms of the server has no end")
		}
		all, data = append(all, string(name)), rest
	}
	if len(data) != 1 {
		return nil, violation("list of SASL mechanisms of the server is malformed")
	}
	return all, nil
}

// SASLInitialResponse reads the body of a client's first 'p' after an AuthSASL.
// data is a part of body. A client that sends no data wants to be asked first,
// which SCRAM has no use for: it is an error.
func SASLInitialResponse(body []byte) (mechanism string, data []byte, err error) {
	name, rest, ok := bytes.Cut(body, []byte{0})
	if !ok || len(rest) < 4 || len(body) > maxSASL {
		return "", nil, violation("malformed SASL initial response")
	}
	// -1 is: no data.
	if n := binary.BigEndian.Uint32(rest); uint64(n) != uint64(len(rest)-4) {
		return "", nil, violation("malformed SASL initial response")
	}
	return string(name), rest[4:], nil
}

// AskSASL encodes a server's AuthenticationSASL.
func AskSASL(mechanisms []string) ([]byte, error) {
	return (&pgproto3.AuthenticationSASL{AuthMechanisms: mechanisms}).Encode(nil)
}

// ContinueSASL encodes a server's AuthenticationSASLContinue: a challenge.
func ContinueSASL(data []byte) ([]byte, error) {
	return (&pgproto3.AuthenticationSASLContinue{Data: data}).Encode(nil)
}

// FinishSASL encodes a server's AuthenticationSASLFinal. Authenticated follows.
func FinishSASL(data []byte) ([]byte, error) {
	return (&pgproto3.AuthenticationSASLFinal{Data: data}).Encode(nil)
}

// Authenticated encodes a server's AuthenticationOk.
func Authenticated() ([]byte, error) {
	return (&pgproto3.AuthenticationOk{}).Encode(nil)
}

// BeginSASL encodes a client's SASLInitialResponse.
func BeginSASL(mechanism string, data []byte) ([]byte, error) {
	return (&pgproto3.SASLInitialResponse{AuthMechanism: mechanism, Data: data}).Encode(nil)
}

// AnswerSASL encodes a client's SASLResponse: the answer to a challenge.
func AnswerSASL(data []byte) ([]byte, error) {
	return (&pgproto3.SASLResponse{Data: data}).Encode(nil)
}
