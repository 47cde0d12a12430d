package pgwire

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

func packet(code uint32, body string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
	return append(binary.BigEndian.AppendUint32(b, code), body...)
}

func read(b []byte) (Packet, error) { return ReadPacket(bufio.NewReader(bytes.NewReader(b))) }

func TestStartupPacketsOfEveryMinorVersionAreKeptAsTheyCame(t *testing.T) {
	for _, minor := range []uint32{0, 1, 2, 9999} {
		raw := packet(3<<16|minor, "user\x00alice\x00database\x00shop\x00user\x00bob\x00_pq_.x\x00\x00\x00")
		p, err := read(raw)
		if err != nil || p.Kind != KindStartup || !bytes.Equal(p.Raw, raw) {
			t.Fatalf("3.%d: %+v, %v", minor, p, err)
		}
		// The last of two values counts, as on the server.
		if p.Param("user") != "bob" || p.Param("database") != "shop" || p.Param("replication") != "" {
			t.Errorf("3.%d: user %q, database %q", minor, p.Param("user"), p.Param("database"))
		}
	}
}

func TestKindsOfPackets(t *testing.T) {
	for name, c := range map[string]struct {
		raw  []byte
		kind Kind
	}{
		"TLS":        {packet(codeSSL, ""), KindSSL},
		"GSS":        {packet(codeGSS, ""), KindGSS},
		"cancel 3.0": {packet(codeCancel, strings.Repeat("k", 4+4)), KindCancel},
		"cancel 3.2": {packet(codeCancel, strings.Repeat("k", 4+32)), KindCancel},
		"longest":    {packet(codeCancel, strings.Repeat("k", 4+256)), KindCancel},
		"TLS hello":  {[]byte{0x16, 3, 1, 0, 200}, KindDirectTLS},
	} {
		p, err := read(c.raw)
		if err != nil || p.Kind != c.kind {
			t.Errorf("%s: kind %d, %v", name, p.Kind, err)
		}
	}
}

func TestBadPacketsAreProtocolErrors(t *testing.T) {
	for name, raw := range map[string][]byte{
		"too short":       {0, 0, 0, 7},
		"too long":        {0, 0, 0x27, 0x11},
		"negative":        {0xff, 0xff, 0xff, 0xff},
		"version 2":       packet(2<<16, "\x00"),
		"version 4":       packet(4<<16, "\x00"),
		"no terminator":   packet(3<<16, "user\x00alice\x00"),
		"odd":             packet(3<<16, "user\x00"),
		"empty":           packet(3<<16, ""),
		"bytes after":     packet(3<<16, "\x00x"),
		"short key":       packet(codeCancel, "1234567"),
		"long key":        packet(codeCancel, strings.Repeat("k", 4+257)),
		"TLS with a body": packet(codeSSL, "x"),
	} {
		var p *ProtocolError
		if _, err := read(raw); !errors.As(err, &p) || p.Code == "" {
			t.Errorf("%s: %v, want a ProtocolError", name, err)
		}
	}
}

func TestATruncatedPacketIsAnUnexpectedEnd(t *testing.T) {
	raw := packet(3<<16, "user\x00alice\x00\x00")
	for n := 1; n < len(raw); n++ {
		if _, err := read(raw[:n]); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if _, err := read(nil); err != io.EOF {
		t.Errorf("nothing: %v", err)
	}
}

func TestFatalIsReadAsPostgresWritesIt(t *testing.T) {
	raw, err := Fatal(Error{Code: "57P03", Message: "no primary", Detail: "Waited.", Hint: "Try again."})
	if err != nil {
		t.Fatal(err)
	}
	kind, all, err := ReadMessage(bytes.NewReader(raw))
	if err != nil || kind != 'E' || !bytes.Equal(all, raw) {
		t.Fatalf("%q %v", kind, err)
	}
	if SQLState(all) != "57P03" || ErrorText(all) != "no primary" {
		t.Errorf("code %q, text %q", SQLState(all), ErrorText(all))
	}
	var oracle pgproto3.ErrorResponse
	if err := oracle.Decode(raw[5:]); err != nil || oracle.Severity != "FATAL" || oracle.Hint != "Try again." || oracle.Detail != "Waited." {
		t.Errorf("%+v, %v", oracle, err)
	}
}

func TestMessagesOfAServerAreBounded(t *testing.T) {
	for name, raw := range map[string][]byte{
		"a gigabyte": {'R', 0x40, 0, 0, 0},
		"impossible": {'R', 0, 0, 0, 3},
	} {
		var p *ProtocolError
		if _, _, err := ReadMessage(bytes.NewReader(raw)); !errors.As(err, &p) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, raw := range []string{"", "E", "E\x00\x00\x00\x05C", "E\x00\x00\x00\x08Cabc", "R\x00\x00\x00\x08\x00\x00\x00\x00"} {
		if got := SQLState([]byte(raw)); got != "" {
			t.Errorf("SQLState(%q) = %q", raw, got)
		}
	}
}

// Whatever a stranger sends, reading it ends, takes no more than the packet, and
// a packet that is accepted is what pgx understands by it.
func FuzzReadPacket(f *testing.F) {
	f.Add(packet(3<<16, "user\x00alice\x00\x00"))
	f.Add(packet(codeCancel, "12345678"))
	f.Add(packet(codeSSL, ""))
	f.Add([]byte{0x16, 3, 1})
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bufio.NewReader(bytes.NewReader(data))
		p, err := ReadPacket(r)
		if err != nil || p.Kind == KindDirectTLS {
			return
		}
		if len(p.Raw) > maxStartup || !bytes.HasPrefix(data, p.Raw) {
			t.Fatalf("raw is not what came: %q of %q", p.Raw, data)
		}
		if p.Kind != KindStartup || binary.BigEndian.Uint32(p.Raw[4:]) != 3<<16 {
			return
		}
		var oracle pgproto3.StartupMessage
		if err := oracle.Decode(p.Raw[4:]); err != nil {
			t.Skip() // pgx is stricter about empty names
		}
		for name, value := range oracle.Parameters {
			if got := p.Param(name); got != value {
				t.Fatalf("%q is %q, pgx says %q", name, got, value)
			}
		}
	})
}

func FuzzSQLState(f *testing.F) {
	raw, _ := Fatal(Error{Code: "57P03", Message: "no primary"})
	f.Add(raw)
	f.Fuzz(func(t *testing.T, data []byte) {
		SQLState(data)
		ErrorText(data)
	})
}
