package pgwire

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/jackc/pgx/v5/pgproto3"
)

// message is a server's message with a right length.
func message(kind byte, body string) []byte {
	raw := binary.BigEndian.AppendUint32([]byte{kind}, uint32(4+len(body)))
	return append(raw, body...)
}

func TestAMessageIsReadWholeAndNothingBehindIt(t *testing.T) {
	for _, raw := range [][]byte{message('R', "\x00\x00\x00\x00"), message('S', ""), message('E', strings.Repeat("x", maxFirst-4))} {
		in := bufio.NewReader(iotest.OneByteReader(io.MultiReader(bytes.NewReader(raw), strings.NewReader("rest"))))
		kind, got, err := ReadMessage(in)
		if err != nil || kind != raw[0] || !bytes.Equal(got, raw) {
			t.Errorf("%q of %d bytes: %q, %d bytes, %v", raw[0], len(raw), kind, len(got), err)
		}
		if rest, _ := io.ReadAll(in); string(rest) != "rest" {
			t.Errorf("%q is left", rest)
		}
		for n := range min(len(raw), 20) {
			want := io.ErrUnexpectedEOF
			if n == 0 {
				want = io.EOF
			}
			if _, _, err := ReadMessage(bytes.NewReader(raw[:n])); err != want {
				t.Errorf("after %d bytes: %v, want %v", n, err, want)
			}
		}
	}
}

func TestAMessageOfAnImpossibleLengthIsNotRead(t *testing.T) {
	for _, n := range []uint32{0, 3, maxFirst + 1, 0xffffffff} {
		_, _, err := ReadMessage(bytes.NewReader(append(binary.BigEndian.AppendUint32([]byte{'E'}, n), make([]byte, 100)...)))
		var p *ProtocolError
		if !errors.As(err, &p) {
			t.Errorf("length %d: %v, want a protocol error", n, err)
		}
	}
}

func TestTheFieldsOfAnError(t *testing.T) {
	full := message('E', "SFATAL\x00VFATAL\x00C57P03\x00Mthe database system is starting up\x00Fx.c\x00\x00")
	if code, text := SQLState(full), ErrorText(full); code != "57P03" || text != "the database system is starting up" {
		t.Errorf("%q, %q", code, text)
	}
	for _, other := range [][]byte{
		nil, []byte("E"), message('R', "C57P03\x00\x00"), message('E', ""), message('E', "\x00"),
		message('E', "C57P03"), message('E', "SFATAL\x00C57P03"), message('E', "\x00C57P03\x00\x00"),
	} {
		if code := SQLState(other); code != "" {
			t.Errorf("%q has the code %q", other, code)
		}
	}
}

func TestWhatWeSayIsReadByOthers(t *testing.T) {
	raw, err := Fatal(Error{Code: "57P03", Message: "no primary", Detail: "Waited 30s.", Hint: "Try again."})
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgproto3.NewFrontend(bytes.NewReader(raw), io.Discard).Receive()
	if err != nil {
		t.Fatal(err)
	}
	e, ok := got.(*pgproto3.ErrorResponse)
	if !ok || e.Severity != "FATAL" || e.SeverityUnlocalized != "FATAL" || e.Code != "57P03" || e.Message != "no primary" ||
		e.Detail != "Waited 30s." || e.Hint != "Try again." {
		t.Errorf("%+v", got)
	}
}

// FuzzReadMessage holds the reader to its bounds, and the fields to what pgx
// finds.
func FuzzReadMessage(f *testing.F) {
	for _, seed := range [][]byte{
		message('E', "SFATAL\x00VFATAL\x00C57P03\x00Mno\x00\x00"), message('R', "\x00\x00\x00\x0aSCRAM-SHA-256\x00\x00"),
		message('E', "C1\x00C2\x00\x00"), message('E', "C"), message('E', ""), {'E', 0, 0, 0, 3}, {'E', 0xff, 0xff, 0xff, 0xff}, nil,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		kind, got, err := ReadMessage(bytes.NewReader(raw))
		if err != nil {
			return
		}
		if !bytes.HasPrefix(raw, got) || kind != raw[0] || len(got) > 1+maxFirst {
			t.Fatalf("%d bytes, not the beginning", len(got))
		}
		code, text := SQLState(got), ErrorText(got)
		if kind != 'E' {
			return
		}
		var theirs pgproto3.ErrorResponse
		if theirs.Decode(got[5:]) != nil || bytes.Count(got[5:], []byte("C")) > 1 || bytes.Count(got[5:], []byte("M")) > 1 {
			return // of a field that comes twice pgx takes the last
		}
		if code != "" && code != theirs.Code || text != "" && text != theirs.Message {
			t.Errorf("%q %q, pgx reads %q %q", code, text, theirs.Code, theirs.Message)
		}
	})
}
