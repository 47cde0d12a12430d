package pgwire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"

	"github.com/jackc/pgproto3/v2"
)

// Kind is what a start-up packet asks for.
type Kind uint8

const (
	// KindStartup: begin a session; see Packet.Param.
	KindStartup Kind = iota
	// KindCancel: cancel a query of another session.
	KindCancel
	// KindSSL and KindGSS: encrypt, answered with one byte.
	KindSSL
	KindGSS
	// KindDirectTLS: the client began with a TLS handshake.
	KindDirectTLS
)

const (
	// Request codes of PostgreSQL's src/include/libpq/pqcomm.h.
	codeCancel = 80877102
	codeSSL    = 80877103
	codeGSS    = 80877104

	// maxStartup is MAX_STARTUP_PACKET_LENGTH of PostgreSQL, in bytes.
	maxStartup = 10000
	// maxCancelKey bounds the key of a cancel request, in bytes: protocol 3.2
	// allows 256, 3.0 has 4.
	minCancelKey, maxCancelKey = 4, 256

	// tlsHandshake is the first byte of a TLS connection.
	tlsHandshake = 0x16
)

// Packet is one start-up packet.
type Packet struct {
	Kind Kind
	// Raw is the packet as it came, to be sent on as it is. Empty for
	// KindDirectTLS, of which nothing was read.
	Raw []byte
}

// Params are the names and values of a KindStartup, in the client's order; a
// name may come again. They are found anew each time: a client that waits costs
// its packet, not thousands of strings.
func (p Packet) Params() iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		if p.Kind != KindStartup || len(p.Raw) < 8 {
			return
		}
		for body := p.Raw[8:]; len(body) > 1; {
			name, rest, _ := bytes.Cut(body, []byte{0})
			value, rest, _ := bytes.Cut(rest, []byte{0})
			if !yield(string(name), string(value)) {
				return
			}
			body = rest
		}
	}
}

// Param returns the last value of a parameter such as "user", which is the one
// that the server takes; empty if there is none.
func (p Packet) Param(name string) string {
	var last string
	for n, v := range p.Params() {
		if n == name {
			last = v
		}
	}
	return last
}

// ProtocolError is a violation of the protocol by a peer. It can be told to a
// client as it is.
type ProtocolError struct {
	Code    string // SQLSTATE
	Message string
}

func (e *ProtocolError) Error() string { return e.Message }

func violation(format string, args ...any) error {
	return &ProtocolError{Code: "08P01", Message: fmt.Sprintf(format, args...)}
}

// Reader is where start-up packets come from, such as a *bufio.Reader.
type Reader interface {
	io.Reader
	Peek(n int) ([]byte, error)
}

// ReadPacket reads one start-up packet, of at most maxStartup bytes. It returns
// a *ProtocolError for what is none, and the reader's error otherwise; io.EOF
// only if there was not a single byte.
func ReadPacket(r Reader) (Packet, error) {
	first, err := r.Peek(1)
	if err != nil {
		return Packet{}, err
	}
	if first[0] == tlsHandshake {
		return Packet{Kind: KindDirectTLS}, nil
	}
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Packet{}, unexpected(err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 8 || n > maxStartup {
		return Packet{}, violation("invalid length of startup packet")
	}
	raw := make([]byte, n)
	copy(raw, head[:])
	if _, err := io.ReadFull(r, raw[4:]); err != nil {
		return Packet{}, unexpected(err)
	}
	return parsePacket(raw)
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func parsePacket(raw []byte) (Packet, error) {
	p := Packet{Raw: raw}
	code := binary.BigEndian.Uint32(raw[4:])
	body := raw[8:]
	switch code {
	case codeSSL, codeGSS:
		if len(body) != 0 {
			return p, violation("invalid length of startup packet")
		}
		p.Kind = KindSSL
		if code == codeGSS {
			p.Kind = KindGSS
		}
		return p, nil
	case codeCancel:
		p.Kind = KindCancel
		if key := len(body) - 4; key < minCancelKey || key > maxCancelKey {
			return p, violation("invalid length of cancel request packet")
		}
		return p, nil
	}
	if major, minor := code>>16, code&0xffff; major != 3 {
		return p, &ProtocolError{Code: "0A000", Message: fmt.Sprintf("unsupported frontend protocol %d.%d: server supports 3.0 to 3.2", major, minor)}
	}
	return p, checkParams(body)
}

// checkParams looks at a start-up packet's body: strings that end in zero, name
// and value by turns, and one zero byte at the end, as ProcessStartupPacket of
// PostgreSQL's src/backend/tcop/backend_startup.c wants it.
func checkParams(body []byte) error {
	malformed := violation("invalid startup packet layout: expected terminator as last byte")
	for len(body) > 0 && body[0] != 0 {
		for range 2 {
			_, rest, ok := bytes.Cut(body, []byte{0})
			if !ok {
				return malformed
			}
			body = rest
		}
	}
	if len(body) != 1 {
		return malformed
	}
	return nil
}

// SSLRequest asks a server for TLS, which answers with one byte: S or N.
func SSLRequest() []byte {
	return binary.BigEndian.AppendUint32([]byte{0, 0, 0, 8}, codeSSL)
}

// CancelRequest asks a server to cancel what the session of that key runs. key is
// the body of its BackendKeyData.
func CancelRequest(key []byte) []byte {
	raw := binary.BigEndian.AppendUint32(nil, uint32(8+len(key)))
	return append(binary.BigEndian.AppendUint32(raw, codeCancel), key...)
}

// Startup is a start-up packet of protocol 3.0. It fails for values that cannot
// be sent.
func Startup(user, database string) ([]byte, error) {
	for _, v := range []string{user, database} {
		if strings.ContainsRune(v, 0) {
			return nil, violation("a zero byte in a start-up packet")
		}
	}
	return (&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersionNumber,
		Parameters: map[string]string{"user": user, "database": database}}).Encode(nil)
}
