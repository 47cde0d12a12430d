package pgwire

import "strings"

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
	if m.bare, err = saslText(data); err != nil {
		return m, err
	}
	whole := m.bare
	m.flag = whole[0]
	binding, rest, ok := strings.Cut(whole, ",")
	switch {
	case !ok:
		return m, malformed("it ends after the channel-binding flag")
	case m.flag == 'p':
		if binding != "p="+endpointBinding {
			return m, violation("unsupported SCRAM channel-binding type: use %s", endpointBinding)
		}
	case binding != "n" && binding != "y":
		return m, malformed("unexpected channel-binding flag")
	}
	switch authorize, bare, _ := strings.Cut(rest, ","); {
	case strings.HasPrefix(authorize, "a"):
		return m, unsupported("client uses authorization identity, but it is not supported")
	case authorize != "" || bare == "":
		return m, malformed("user name and nonce expected")
	default:
		m.bare, m.header = bare, whole[:len(whole)-len(bare)]
	}
	if m.bare[0] == 'm' {
		return m, unsupported("client requires an unsupported SCRAM extension")
	}
	// The name is that of the start-up packet: this one is ignored.
	if _, rest, err = expectAttribute(m.bare, 'n'); err != nil {
		return m, err
	}
	if m.nonce, rest, err = expectAttribute(rest, 'r'); err != nil {
		return m, err
	}
	if m.nonce == "" || strings.IndexFunc(m.nonce, notPrintable) >= 0 {
		return m, violation("empty or non-printable SCRAM nonce")
	}
	for rest != "" { // optional extensions: ignored, but well formed
		if _, _, rest, err = nextAttribute(rest); err != nil {
			return m, err
		}
	}
	return m, nil
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
	if rest != "" || strings.HasSuffix(whole, ",") {
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
// What follows its comma is rest.
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
