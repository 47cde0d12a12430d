package pgwire

import "encoding/binary"

const (
	// MaxWhole bounds the messages that Next insists on seeing whole, in bytes
	// with their header: what a reader has to keep of one that is cut.
	MaxWhole = 16<<10 - 1
	// minPart is how much Next wants to see of a larger one: enough for names
	// and the first words of a statement.
	minPart = 1 << 10
)

// Frame is a message after the start-up: its kind, and its body, opaque.
type Frame struct {
	Kind byte
	// Body is all of it, or the beginning if Rest is not 0. It is a part of what
	// was given to Next.
	Body []byte
	// Size is the length on the wire, the header too.
	Size int64
	// Rest is how much of Size is still to come.
	Rest int64
}

// Next returns the message at the beginning of p, of whatever kind, and how many
// bytes of p it has. That is 0 while more must come before it can be told, so
// that a message of up to MaxWhole bytes is seen whole; of a larger one Rest
// follows after p. The error is a *ProtocolError when p cannot be the beginning
// of a message.
func Next(p []byte) (f Frame, n int, err error) {
	if len(p) < 5 {
		return f, 0, nil
	}
	length := binary.BigEndian.Uint32(p[1:])
	if length < 4 {
		return f, 0, violation("invalid message length")
	}
	f.Kind, f.Size = p[0], int64(length)+1
	if f.Size <= int64(len(p)) {
		f.Body = p[5:f.Size]
		return f, int(f.Size), nil
	}
	if f.Size <= MaxWhole || len(p) < minPart {
		return f, 0, nil
	}
	f.Body, f.Rest = p[5:], f.Size-int64(len(p))
	return f, len(p), nil
}
