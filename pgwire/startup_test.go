package pgwire

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/jackc/pgx/v5/pgproto3"
)

// packet is a start-up packet with a right length.
func packet(code uint32, body string) []byte {
	raw := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
	return append(binary.BigEndian.AppendUint32(raw, code), body...)
}

const version30, version32 = 3 << 16, 3<<16 | 2

func read(raw []byte) (Packet, error) { return ReadPacket(bufio.NewReader(bytes.NewReader(raw))) }

func TestPacketsAreToldApart(t *testing.T) {
	for _, c := range []struct {
		name string
		raw  []byte
		want Kind
	}{
		{"start-up 3.0", packet(version30, "user\x00u\x00\x00"), KindStartup},
		{"start-up 3.2", packet(version32, "user\x00u\x00\x00"), KindStartup},
		{"start-up of a version to come", packet(3<<16|9999, "user\x00u\x00_pq_.x\x00y\x00\x00"), KindStartup},
		{"start-up without parameters", packet(version30, "\x00"), KindStartup},
		{"TLS", packet(codeSSL, ""), KindSSL},
		{"GSS", packet(codeGSS, ""), KindGSS},
		{"cancel with the key of 3.0", packet(codeCancel, "pid!"+strings.Repeat("k", 4)), KindCancel},
		{"cancel with the key of 3.2", packet(codeCancel, "pid!"+strings.Repeat("k", 32)), KindCancel},
		{"cancel with the longest key", packet(codeCancel, "pid!"+strings.Repeat("k", 256)), KindCancel},
	} {
		// However the bytes come, all of the packet is read and none behind it.
		for how, wrap := range map[string]func(io.Reader) io.Reader{
			"at once":      func(r io.Reader) io.Reader { return r },
			"byte by byte": iotest.OneByteReader,
		} {
			in := bufio.NewReader(wrap(io.MultiReader(bytes.NewReader(c.raw), strings.NewReader("rest"))))
			got, err := ReadPacket(in)
			if err != nil || got.Kind != c.want || !bytes.Equal(got.Raw, c.raw) {
				t.Errorf("%s, %s: kind %d, raw %q, %v", c.name, how, got.Kind, got.Raw, err)
			}
			if rest, _ := io.ReadAll(in); string(rest) != "rest" {
				t.Errorf("%s, %s: %q is left, want %q", c.name, how, rest, "rest")
			}
		}
	}
}

func TestATLSHandshakeIsLeftUnread(t *testing.T) {
	in := bufio.NewReader(strings.NewReader("\x16\x03\x01hello"))
	got, err := ReadPacket(in)
	if err != nil || got.Kind != KindDirectTLS || len(got.Raw) != 0 {
		t.Fatalf("%+v, %v", got, err)
	}
	if rest, _ := io.ReadAll(in); string(rest) != "\x16\x03\x01hello" {
		t.Errorf("left: %q", rest)
	}
}

func TestWhatIsNoPacketIsToldSo(t *testing.T) {
	length := func(n uint32) []byte { return append(binary.BigEndian.AppendUint32(nil, n), make([]byte, 16)...) }
	const badLength, badLayout = "invalid length of startup packet", "invalid startup packet layout: expected terminator as last byte"
	for _, c := range []struct {
		name, code, message string
		raw                 []byte
	}{
		{"HTTP", "08P01", badLength, []byte("GET / HTTP/1.1\r\n\r\n")},
		{"a length of zero", "08P01", badLength, length(0)},
		{"one byte too short", "08P01", badLength, length(7)},
		{"one byte too long", "08P01", badLength, length(10001)},
		{"4 GiB", "08P01", badLength, length(0xffffffff)},
		{"version 2", "0A000", "unsupported frontend protocol 2.0: server supports 3.0 to 3.2", packet(2<<16, "x")},
		{"version 4", "0A000", "unsupported frontend protocol 4.0: server supports 3.0 to 3.2", packet(4<<16, "x")},
		{"an unknown request", "0A000", "unsupported frontend protocol 1234.5681: server supports 3.0 to 3.2", packet(80877105, "")},
		{"no end", "08P01", badLayout, packet(version30, "")},
		{"no end after a value", "08P01", badLayout, packet(version30, "user\x00u\x00")},
		{"a name without a value", "08P01", badLayout, packet(version30, "user\x00")},
		{"a value without an end", "08P01", badLayout, packet(version30, "user\x00u")},
		{"bytes behind the end", "08P01", badLayout, packet(version30, "user\x00u\x00\x00x")},
		{"TLS with a body", "08P01", badLength, packet(codeSSL, "x")},
		{"cancel without a key", "08P01", "invalid length of cancel request packet", packet(codeCancel, "pid!")},
		{"cancel with too short a key", "08P01", "invalid length of cancel request packet", packet(codeCancel, "pid!123")},
		{"cancel with too long a key", "08P01", "invalid length of cancel request packet", packet(codeCancel, "pid!"+strings.Repeat("k", 257))},
	} {
		_, err := read(c.raw)
		var p *ProtocolError
		if !errors.As(err, &p) || p.Code != c.code || p.Message != c.message {
			t.Errorf("%s: %v, want %s %s", c.name, err, c.code, c.message)
		}
	}
}

func TestAClientThatStopsInTheMiddle(t *testing.T) {
	whole := packet(version30, "user\x00u\x00\x00")
	for n := range whole {
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = io.EOF // it never began
		}
		if _, err := read(whole[:n]); err != want {
			t.Errorf("after %d bytes: %v, want %v", n, err, want)
		}
	}
}

func TestParamsKeepTheirOrderAndTheLastValueCounts(t *testing.T) {
	p, err := read(packet(version30, "user\x00a\x00options\x00\x00user\x00b\x00\x00"))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for name, value := range p.Params() {
		all = append(all, name+"="+value)
	}
	if want := []string{"user=a", "options=", "user=b"}; !slices.Equal(all, want) {
		t.Errorf("%q, want %q", all, want)
	}
	if p.Param("user") != "b" || p.Param("options") != "" || p.Param("database") != "" {
		t.Errorf("user %q, options %q, database %q", p.Param("user"), p.Param("options"), p.Param("database"))
	}
}

// FuzzReadPacket holds the reader to its bounds, and to pgx where that can read
// the packet too.
func FuzzReadPacket(f *testing.F) {
	for _, seed := range [][]byte{
		packet(version30, "user\x00u\x00database\x00d\x00\x00"), packet(version32, "user\x00u\x00\x00"), packet(version30, "\x00"),
		packet(codeSSL, ""), packet(codeGSS, ""), packet(codeCancel, "pid!key!"), packet(codeCancel, "pid!"+strings.Repeat("k", 32)),
		packet(2<<16, ""), {0x16, 3, 1}, []byte("GET / HTTP/1.1\r\n\r\n"), packet(version30, "user\x00"), packet(version30, "a\x00b\x00c\x00\x00"), nil,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := read(raw)
		var violation *ProtocolError
		if err != nil {
			if err != io.EOF && err != io.ErrUnexpectedEOF && !errors.As(err, &violation) {
				t.Errorf("error of another kind: %v", err)
			}
		} else if !bytes.HasPrefix(raw, p.Raw) || len(p.Raw) > maxStartup {
			t.Errorf("raw is %d bytes and not the beginning", len(p.Raw))
		}
		if len(raw) > 0 && raw[0] == tlsHandshake {
			return // pgx knows no direct TLS
		}
		theirs, theirErr := pgproto3.NewBackend(bytes.NewReader(raw), io.Discard).ReceiveStartupMessage()
		if theirErr != nil {
			return // pgx knows fewer versions
		}
		switch m := theirs.(type) {
		case *pgproto3.StartupMessage:
			if err != nil {
				if _, ok := m.Parameters[""]; !ok {
					t.Fatalf("pgx reads %v, we say %v", m.Parameters, err)
				}
				return
			}
			if got := maps.Collect(p.Params()); !maps.Equal(got, m.Parameters) {
				t.Errorf("parameters %q, pgx reads %q", got, m.Parameters)
			}
		case *pgproto3.CancelRequest:
			if err != nil || p.Kind != KindCancel {
				t.Errorf("pgx reads a cancel request, we kind %d, %v", p.Kind, err)
			}
		case *pgproto3.SSLRequest:
			if (err == nil) != (len(p.Raw) == 8) || err == nil && p.Kind != KindSSL {
				t.Errorf("pgx reads a request for TLS, we kind %d, %v", p.Kind, err)
			}
		}
	})
}
