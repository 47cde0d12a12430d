package pgwire

import (
	"bytes"
	"encoding/binary"
	"io"

	"github.com/jackc/pgproto3/v2"
)

// maxFirst bounds a server's first message, in bytes without its type. Errors
// and requests for authentication have some hundred.
const maxFirst = 64 << 10

// ReadMessage reads one message of a server: its type, and all of it with its
// header, to be sent on as it is. It returns a *ProtocolError when the length
// is impossible or above 64 KiB.
func ReadMessage(r io.Reader) (kind byte, raw []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:1]); err != nil {
		return 0, nil, err
	}
	if _, err := io.ReadFull(r, head[1:]); err != nil {
		return 0, nil, unexpected(err)
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n < 4 || n > maxFirst {
		return 0, nil, violation("message %q of the server has an invalid length of %d", head[0], n)
	}
	raw = make([]byte, 1+n)
	copy(raw, head[:])
	if _, err := io.ReadFull(r, raw[5:]); err != nil {
		return 0, nil, unexpected(err)
	}
	return head[0], raw, nil
}

// SQLState returns the code of an ErrorResponse as ReadMessage returned it;
// empty if it has none.
func SQLState(raw []byte) string { return errorField(raw, 'C') }

// ErrorText returns the text of an ErrorResponse, likewise.
func ErrorText(raw []byte) string { return errorField(raw, 'M') }

// IsFatal reports whether an ErrorResponse, likewise, ends its session.
func IsFatal(raw []byte) bool {
	severity := errorField(raw, 'V') // not translated
	return severity == "FATAL" || severity == "PANIC"
}

func errorField(raw []byte, field byte) string {
	if len(raw) < 5 || raw[0] != 'E' {
		return ""
	}
	body := raw[5:]
	for len(body) > 0 && body[0] != 0 {
		kind := body[0]
		value, rest, ok := bytes.Cut(body[1:], []byte{0})
		if !ok {
			return ""
		}
		if kind == field {
			return string(value)
		}
		body = rest
	}
	return ""
}

// ParameterStatus returns what the body of a ParameterStatus says.
func ParameterStatus(body []byte) (name, value []byte, ok bool) {
	name, rest, ok := bytes.Cut(body, []byte{0})
	value, rest, ended := bytes.Cut(rest, []byte{0})
	return name, value, ok && ended && len(rest) == 0
}

// Error is an error that the proxy tells a client, in PostgreSQL's style.
type Error struct {
	Code    string // SQLSTATE
	Message string // short, lower case, without a full stop
	Detail  string // a sentence; may be empty
	Hint    string // a sentence; may be empty
}

// Fatal encodes e as an ErrorResponse of severity FATAL, after which the
// connection is closed. It fails only for texts beyond what a message can hold.
func Fatal(e Error) ([]byte, error) {
	return (&pgproto3.ErrorResponse{
		Severity: "FATAL", SeverityUnlocalized: "FATAL",
		Code: e.Code, Message: e.Message, Detail: e.Detail, Hint: e.Hint,
	}).Encode(nil)
}
