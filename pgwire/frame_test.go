package pgwire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// mover stands for whoever moves a stream: it shows what it read to Next, keeps
// what Next wants to see again, and lets the rest of large messages through.
type mover struct {
	kept   []byte
	rest   int64
	out    []byte
	frames []Frame // with their bodies copied
}

func (m *mover) read(t *testing.T, chunk []byte) {
	t.Helper()
	skip := min(m.rest, int64(len(chunk)))
	m.out = append(m.out, chunk[:skip]...)
	m.rest -= skip
	p := append(m.kept, chunk[skip:]...)
	for len(p) > 0 {
		f, n, err := Next(p)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		f.Body = bytes.Clone(f.Body)
		m.frames = append(m.frames, f)
		m.out = append(m.out, p[:n]...)
		p, m.rest = p[n:], f.Rest
	}
	if len(p) > MaxWhole {
		t.Fatalf("%d bytes are kept", len(p))
	}
	m.kept = bytes.Clone(p)
}

func TestHoweverAStreamIsCutItsMessagesAreTheSame(t *testing.T) {
	var stream []byte
	var kinds []byte
	var sizes []int64
	for i, n := range []int{0, 1, 4, 100, 5000, MaxWhole - 5, MaxWhole - 4, 20_000, 0, 100_000, 3, 1019, 1020} {
		kind := byte('A' + i)
		kinds, sizes = append(kinds, kind), append(sizes, int64(n)+5)
		stream = append(stream, message(kind, string(bytes.Repeat([]byte{kind}, n)))...)
	}
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		var m mover
		for rest := stream; len(rest) > 0; {
			n := min(1+r.IntN(1<<r.IntN(17)), len(rest))
			m.read(t, rest[:n])
			rest = rest[n:]
		}
		if !bytes.Equal(m.out, stream) || len(m.kept) != 0 || m.rest != 0 {
			t.Fatalf("seed %d: %d of %d bytes went through, %d are kept, %d to come", seed, len(m.out), len(stream), len(m.kept), m.rest)
		}
		if len(m.frames) != len(kinds) {
			t.Fatalf("seed %d: %d messages, want %d", seed, len(m.frames), len(kinds))
		}
		for i, f := range m.frames {
			if f.Kind != kinds[i] || f.Size != sizes[i] {
				t.Fatalf("seed %d: message %d is %q of %d bytes, want %q of %d", seed, i, f.Kind, f.Size, kinds[i], sizes[i])
			}
			if whole := int64(len(f.Body))+5 == f.Size; !whole && (f.Size <= MaxWhole || len(f.Body)+5 < minPart) {
				t.Fatalf("seed %d: of message %d with %d bytes only %d are seen", seed, i, f.Size, len(f.Body))
			}
			if len(bytes.Trim(f.Body, string(f.Kind))) != 0 {
				t.Fatalf("seed %d: message %d has another's bytes", seed, i)
			}
		}
	}
}

func TestALengthThatLies(t *testing.T) {
	for _, n := range []uint32{0, 1, 3} {
		_, _, err := Next(binary.BigEndian.AppendUint32([]byte{'Q'}, n))
		var p *ProtocolError
		if !errors.As(err, &p) || p.Code != "08P01" {
			t.Errorf("length %d: %v", n, err)
		}
	}
	// A message that claims 4 GiB costs nothing but what came of it.
	claim := append([]byte{'d', 0xff, 0xff, 0xff, 0xff}, make([]byte, minPart)...)
	f, n, err := Next(claim)
	if err != nil || n != len(claim) || f.Size != 1<<32 || f.Rest != f.Size-int64(len(claim)) {
		t.Errorf("%d bytes, %d to come, %v", n, f.Rest, err)
	}
}

// FuzzNext holds every split of every input to the same bytes and messages, and
// to what pgx makes of the stream.
func FuzzNext(f *testing.F) {
	f.Add(append(message('Q', "select 1\x00"), message('X', "")...), uint64(1))
	f.Add(append(message('Z', "I"), message('C', "SELECT 1\x00")...), uint64(2))
	f.Add(message('d', string(make([]byte, 20_000))), uint64(3))
	f.Add([]byte{'Q', 0, 0, 0, 3}, uint64(4))
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64) {
		whole, wholeErr := walk(stream, func() int { return len(stream) })
		r := rand.New(rand.NewPCG(seed, 0))
		split, splitErr := walk(stream, func() int { return 1 + r.IntN(64) })
		if (wholeErr == nil) != (splitErr == nil) || len(whole) != len(split) {
			t.Fatalf("at once %d messages, %v; split %d, %v", len(whole), wholeErr, len(split), splitErr)
		}
		for i := range whole {
			if whole[i].Kind != split[i].Kind || whole[i].Size != split[i].Size {
				t.Fatalf("message %d: %q of %d, or %q of %d bytes", i, whole[i].Kind, whole[i].Size, split[i].Kind, split[i].Size)
			}
		}
		theirs := pgproto3.NewFrontend(bytes.NewReader(stream), io.Discard)
		theirs.SetMaxBodyLen(1 << 20)
		for i, ours := range whole {
			msg, err := theirs.Receive()
			if err != nil {
				return // they decode the body too, and know fewer kinds
			}
			if raw, err := msg.Encode(nil); err == nil && raw[0] != ours.Kind {
				t.Fatalf("message %d: %q, pgx reads %q", i, ours.Kind, raw[0])
			}
		}
	})
}

// walk returns the messages of a stream that is read in chunks.
func walk(stream []byte, chunk func() int) (frames []Frame, err error) {
	var kept []byte
	var rest int64
	for len(stream) > 0 {
		n := min(chunk(), len(stream))
		skip := min(rest, int64(n))
		rest -= skip
		p := append(kept, stream[skip:n]...)
		stream = stream[n:]
		for len(p) > 0 && rest == 0 {
			f, n, err := Next(p)
			if err != nil {
				return frames, err
			}
			if n == 0 {
				break
			}
			frames = append(frames, f)
			p, rest = p[n:], f.Rest
		}
		kept = bytes.Clone(p)
	}
	return frames, nil
}

func BenchmarkNext(b *testing.B) {
	stream := bytes.Repeat(message('D', string(make([]byte, 50))), 1000)
	b.SetBytes(int64(len(stream)))
	for b.Loop() {
		for p := stream; len(p) > 0; {
			_, n, _ := Next(p)
			p = p[n:]
		}
	}
}
