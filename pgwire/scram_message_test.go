package pgwire

import (
	"bytes"
	"encoding/binary"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

func TestWhatAServerWantsIsRead(t *testing.T) {
	kind, data, err := ParseAuth([]byte("\x00\x00\x00\x0arest"))
	if err != nil || kind != AuthSASL || string(data) != "rest" {
		t.Errorf("%d, %q, %v", kind, data, err)
	}
	for _, body := range []string{"", "\x00\x00\x00"} {
		if _, _, err := ParseAuth([]byte(body)); codeOf(err) != "08P01" {
			t.Errorf("%q: %v", body, err)
		}
	}
}

func TestTheOfferOfAServerIsRead(t *testing.T) {
	for data, want := range map[string][]string{
		"SCRAM-SHA-256\x00\x00":                       {ScramPlain},
		"SCRAM-SHA-256-PLUS\x00SCRAM-SHA-256\x00\x00": {ScramPlus, ScramPlain},
		"\x00": nil,
		strings.Repeat("X\x00", maxMechanisms) + "\x00": slices.Repeat([]string{"X"}, maxMechanisms),
	} {
		if got, err := SASLMechanisms([]byte(data)); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v", data, got, err)
		}
	}
	for name, data := range map[string]string{
		"nothing":      "",
		"no end":       "SCRAM-SHA-256\x00",
		"a half":       "SCRAM-SHA-256",
		"more":         "SCRAM-SHA-256\x00\x00x",
		"far too many": strings.Repeat("X\x00", maxMechanisms+1) + "\x00",
	} {
		if got, err := SASLMechanisms([]byte(data)); codeOf(err) != "08P01" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestTheFirstResponseOfAClientIsRead(t *testing.T) {
	good := "SCRAM-SHA-256\x00\x00\x00\x00\x05n,,n="
	mechanism, data, err := SASLInitialResponse([]byte(good))
	if err != nil || mechanism != ScramPlain || string(data) != "n,,n=" {
		t.Errorf("%q, %q, %v", mechanism, data, err)
	}
	for name, body := range map[string]string{
		"no data":         "SCRAM-SHA-256\x00\xff\xff\xff\xff",
		"more data":       good + "x",
		"a huge length":   "SCRAM-SHA-256\x00\x7f\xff\xff\xffx",
		"a negative one":  "SCRAM-SHA-256\x00\x80\x00\x00\x00x",
		"too long a body": "X\x00\x00\x00\x04\x00" + strings.Repeat("x", 1024),
	} {
		if _, _, err := SASLInitialResponse([]byte(body)); codeOf(err) != "08P01" {
			t.Errorf("%s: %v", name, err)
		}
	}
	for n := range good { // all that is cut short
		if _, _, err := SASLInitialResponse([]byte(good[:n])); codeOf(err) != "08P01" {
			t.Errorf("%q: %v", good[:n], err)
		}
	}
}

// must is for what cannot fail: messages are far smaller than they may be.
func must(t testing.TB) func(raw []byte, err error) []byte {
	return func(raw []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
}

func TestWhatWeSayOfSASLIsReadByOthers(t *testing.T) {
	data := []byte("r=x,s=y,i=1")
	server := slices.Concat(
		must(t)(AskSASL([]string{ScramPlus, ScramPlain})), must(t)(ContinueSASL(data)), must(t)(FinishSASL(data)), must(t)(Authenticated()))
	they := pgproto3.NewFrontend(bytes.NewReader(server), io.Discard)
	receive := func() pgproto3.BackendMessage {
		m, err := they.Receive()
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	if m, ok := receive().(*pgproto3.AuthenticationSASL); !ok || !slices.Equal(m.AuthMechanisms, []string{ScramPlus, ScramPlain}) {
		t.Errorf("%+v", m)
	}
	if m, ok := receive().(*pgproto3.AuthenticationSASLContinue); !ok || !bytes.Equal(m.Data, data) {
		t.Errorf("%+v", m)
	}
	if m, ok := receive().(*pgproto3.AuthenticationSASLFinal); !ok || !bytes.Equal(m.Data, data) {
		t.Errorf("%+v", m)
	}
	if m, ok := receive().(*pgproto3.AuthenticationOk); !ok {
		t.Errorf("%+v", m)
	}

	client := slices.Concat(must(t)(BeginSASL(ScramPlain, data)), must(t)(AnswerSASL(data)))
	them := pgproto3.NewBackend(bytes.NewReader(client), io.Discard)
	them.SetAuthType(pgproto3.AuthTypeSASL)
	if m, err := them.Receive(); err != nil || m.(*pgproto3.SASLInitialResponse).AuthMechanism != ScramPlain ||
		!bytes.Equal(m.(*pgproto3.SASLInitialResponse).Data, data) {
		t.Errorf("%+v, %v", m, err)
	}
	them.SetAuthType(pgproto3.AuthTypeSASLContinue)
	if m, err := them.Receive(); err != nil || !bytes.Equal(m.(*pgproto3.SASLResponse).Data, data) {
		t.Errorf("%+v, %v", m, err)
	}
}

// FuzzSASL holds the readers to what pgx reads, where that takes the message too.
func FuzzSASL(f *testing.F) {
	for _, seed := range []string{
		"", "\x00", "SCRAM-SHA-256\x00", "SCRAM-SHA-256\x00\x00", "SCRAM-SHA-256-PLUS\x00SCRAM-SHA-256\x00\x00",
		"SCRAM-SHA-256\x00\x00\x00\x00\x05n,,n=", "SCRAM-SHA-256\x00\xff\xff\xff\xff", "SCRAM-SHA-256\x00\x00\x00",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if got, err := SASLMechanisms(raw); err == nil {
			var theirs pgproto3.AuthenticationSASL
			err := theirs.Decode(append(binary.BigEndian.AppendUint32(nil, uint32(AuthSASL)), raw...))
			if err != nil || !slices.Equal(got, theirs.AuthMechanisms) {
				t.Errorf("offer %q: %q, pgx reads %q, %v", raw, got, theirs.AuthMechanisms, err)
			}
		} else if codeOf(err) == "" {
			t.Errorf("offer %q: %v", raw, err)
		}
		if mechanism, data, err := SASLInitialResponse(raw); err == nil {
			var theirs pgproto3.SASLInitialResponse
			err := theirs.Decode(raw)
			if err != nil || mechanism != theirs.AuthMechanism || !bytes.Equal(data, theirs.Data) || len(raw) > maxSASL {
				t.Errorf("response %q: %q %q, pgx reads %q %q, %v", raw, mechanism, data, theirs.AuthMechanism, theirs.Data, err)
			}
		} else if codeOf(err) == "" {
			t.Errorf("response %q: %v", raw, err)
		}
	})
}
