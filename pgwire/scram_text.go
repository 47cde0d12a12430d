package pgwire

import (
	"bytes"
	"strings"
)

// maxSASL is PG_MAX_SASL_MESSAGE_LENGTH of PostgreSQL's src/include/libpq/auth.h,
// in bytes: a client that did not log in yet gets no more. libpq's have some 200.
const maxSASL = 1024

// endpointBinding is the only kind of channel binding that PostgreSQL has.
const endpointBinding = "tls-server-end-point"

// clientFirst is a client's first message.
type clientFirst struct {
	// flag says what the client thinks of channel binding: 'n' it does not do it,
	// 'y' it would, but thinks that the server does not, 'p' it does.
	flag byte
	// header is what stands before bare: it comes again, with the binding, in
	// the last message.
	header string
	bare   string
	nonce  string
}

func parseClientFirst(data []byte) (m clientFirst, err error) {
	whole, err := saslText(data)
	if err != nil {
		return m, err
	}
	if m.flag, m.bare, err = parseHeader(whole); err != nil {
		return m, err
	}
	m.header = strings.TrimSuffix(whole, m.bare)
	if strings.HasPrefix(m.bare, "m") {
		return m, unsupported("client requires an unsupported SCRAM extension")
	}
	// The role is that of the start-up packet: the name here is ignored.
	_, rest, err := expectAttribute(m.bare, 'n')
	if err != nil {
		return m, err
	}
	if m.nonce, rest, err = expectAttribute(rest, 'r'); err != nil {
		return m, err
	}
	if m.nonce == "" || strings.ContainsFunc(m.nonce, notPrintable) {
		return m, violation("empty or non-printable SCRAM nonce")
	}
	for rest != "" { // optional extensions: ignored, but well formed
		if _, _, rest, err = nextAttribute(rest); err != nil {
			return m, err
		}
	}
	return m, nil
}

// parseHeader reads what stands before the name: whether there is a binding, and
// for whom the client wants to act, which must be nobody.
func parseHeader(text string) (flag byte, bare string, err error) {
	binding, rest, _ := strings.Cut(text, ",")
	switch binding {
	case "n", "y", "p=" + endpointBinding:
		flag = binding[0]
	default:
		if strings.HasPrefix(binding, "p=") {
			return 0, "", violation("unsupported SCRAM channel-binding type: use %s", endpointBinding)
		}
		return 0, "", malformed("unexpected channel-binding flag")
	}
	if strings.HasPrefix(rest, "a") {
		return 0, "", unsupported("client uses authorization identity, but it is not supported")
	}
	bare, ok := strings.CutPrefix(rest, ",")
	if !ok {
		return 0, "", malformed("unexpected attribute in client-first-message")
	}
	return flag, bare, nil
}

// clientFinal is a client's last message.
type clientFinal struct {
	binding      string
	nonce        string
	withoutProof string
	proof        digest
}

func parseClientFinal(data []byte) (m clientFinal, err error) {
	whole, err := saslText(data)
	if err != nil {
		return m, err
	}
	var rest string
	if m.binding, rest, err = expectAttribute(whole, 'c'); err != nil {
		return m, err
	}
	if m.nonce, rest, err = expectAttribute(rest, 'r'); err != nil {
		return m, err
	}
	var name byte
	var value string
	for name != 'p' { // optional extensions: ignored
		m.withoutProof = whole[:len(whole)-len(rest)-1]
		if name, value, rest, err = nextAttribute(rest); err != nil {
			return m, err
		}
	}
	var ok bool
	if m.proof, ok = decodeDigest(value); !ok {
		return m, malformed("malformed proof")
	}
	if rest != "" {
		return m, malformed("garbage at the end")
	}
	return m, nil
}

// serverFirst is a server's challenge.
type serverFirst struct {
	nonce      string
	salt       []byte
	iterations int
}

func parseServerFirst(data []byte) (m serverFirst, err error) {
	rest := string(data)
	var salt, iterations string
	if m.nonce, rest, err = expectAttribute(rest, 'r'); err != nil {
		return m, err
	}
	if salt, rest, err = expectAttribute(rest, 's'); err != nil {
		return m, err
	}
	if iterations, rest, err = expectAttribute(rest, 'i'); err != nil {
		return m, err
	}
	var ok bool
	if m.salt, ok = decode64(salt); !ok || len(m.salt) == 0 {
		return m, malformed("invalid salt")
	}
	if m.iterations, ok = parseIterations(iterations); !ok {
		return m, malformed("invalid iteration count")
	}
	if rest != "" {
		return m, malformed("garbage at the end")
	}
	return m, nil
}

// asks says whether the challenge is that of v.
func (c serverFirst) asks(v Verifier) bool {
	return c.iterations == v.iterations && bytes.Equal(c.salt, v.salt)
}

// saslText looks at what all of a client's messages must be.
func saslText(data []byte) (string, error) {
	switch text := string(data); {
	case text == "":
		return "", malformed("it is empty")
	case len(text) > maxSASL:
		return "", malformed("it is too long")
	case strings.ContainsRune(text, 0):
		return "", malformed("it contains a zero byte")
	default:
		return text, nil
	}
}

// nextAttribute reads an attribute such as r=nonce at the beginning of text.
// What follows its comma is rest. A comma with nothing behind it is passed over,
// as PostgreSQL does.
func nextAttribute(text string) (name byte, value, rest string, err error) {
	if text == "" {
		return 0, "", "", malformed("attribute expected, but it ends")
	}
	name = text[0]
	if name|0x20 < 'a' || name|0x20 > 'z' || len(text) < 2 || text[1] != '=' {
		return 0, "", "", malformed("attribute expected")
	}
	value, rest, _ = strings.Cut(text[2:], ",")
	return name, value, rest, nil
}

func expectAttribute(text string, want byte) (value, rest string, err error) {
	name, value, rest, err := nextAttribute(text)
	if err == nil && name != want {
		err = malformed("attribute %q expected, but found %q", want, name)
	}
	return value, rest, err
}

// notPrintable is what a nonce may not have (RFC 5802, printable). The comma
// cannot be in one.
func notPrintable(r rune) bool { return r < 0x21 || r > 0x7e }

func malformed(format string, args ...any) error {
	return violation("malformed SCRAM message: "+format, args...)
}

func unsupported(message string) error { return &ProtocolError{Code: "0A000", Message: message} }
