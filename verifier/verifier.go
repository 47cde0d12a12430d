// Package verifier asks the primary for what the password of a role is checked
// against, so that the proxy can check its clients' itself. It may do so through
// one function that a superuser has installed, and reads nothing else.
package verifier

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"

	"pgfailproxy/cluster"
)

// ErrNotInstalled means that the function is not there, or that the proxy's role
// may not call it.
var ErrNotInstalled = errors.New("the function pgfailproxy.verifier is missing or not granted: run pgfailproxy setup")

// ErrClosed is what Lookup returns after Close.
var ErrClosed = errors.New("the source of verifiers is closed")

// Source looks verifiers up. Nothing that it was told is kept: a password that
// was changed counts at once. It may be used by several goroutines.
type Source struct {
	members map[string]*member
	ctx     context.Context // ends with Close
	stop    context.CancelCauseFunc
}

// New returns a Source for members, by name. Their DialFunc is used; where to is
// said by each Lookup.
func New(members map[string]*pgconn.Config) *Source {
	s := &Source{members: make(map[string]*member, len(members))}
	s.ctx, s.stop = context.WithCancelCause(context.Background())
	for name, config := range members {
		s.members[name] = newMember(config)
	}
	return s
}

// Close ends what is under way, waits for it, and closes the connections.
func (s *Source) Close() {
	s.stop(ErrClosed)
	for _, m := range s.members {
		m.close()
	}
}

// Lookup asks a member, at the address that was verified to be the primary's,
// for the verifier of a role: "SCRAM-SHA-256$..." as it is stored. It is empty
// if nobody may log in as that role with a password now: there is none, it may
// not log in, it has no password or one that is no longer valid, or the function
// was installed without superusers and it is one. It is another text if the
// password is stored in another way.
func (s *Source) Lookup(ctx context.Context, name string, addr cluster.Addr, role string) (string, error) {
	m := s.members[name]
	if m == nil {
		return "", fmt.Errorf("there is no member %q", name)
	}
	// What strangers send as a role's name is no error of ours.
	if !utf8.ValidString(role) || strings.ContainsRune(role, 0) {
		return "", nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.ctx, func() { cancel(ErrClosed) })()

	text, err := m.lookup(ctx, addr, role)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return "", fmt.Errorf("ask %s for a verifier: %w", name, err)
	}
	return text, nil
}

// untranslatable are SQLSTATEs for a text that the server's encoding has no
// place for; so no role is called that.
var untranslatable = []string{"22021", "22P05"}

// missing are SQLSTATEs that mean ErrNotInstalled: undefined function, schema
// and insufficient privilege.
var missing = []string{"42883", "3F000", "42501"}
