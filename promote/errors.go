package promote

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// ErrNotYet means that the context ended first. The step may be done or not,
// and may still come about: call it again.
var ErrNotYet = errors.New("not yet")

// ErrRefused means that a server does not let Fence change primary_conninfo,
// though the role may: its settings are managed otherwise, or cannot be written.
var ErrRefused = errors.New("the server refuses to change primary_conninfo")

// Why Verify refuses a server.
var (
	// ErrStandby: it is still in recovery.
	ErrStandby = errors.New("it is still in recovery")
	// ErrForeign: it belongs to another database cluster. Nothing was written
	// to it.
	ErrForeign = errors.New("it belongs to another database cluster")
	// ErrOldTimeline: no promotion has begun a new timeline on it. Nothing was
	// written to it.
	ErrOldTimeline = errors.New("its timeline has not grown")
	// ErrNoWrite: it is a primary but a write failed.
	ErrNoWrite = errors.New("it does not take a write")
)

// PrivilegeError says that the role of a member's connection may not do
// something, and what a superuser has to run on the primary to mend it.
type PrivilegeError struct {
	Member string
	Grants []string // SQL
}

func (e *PrivilegeError) Error() string {
	return fmt.Sprintf("a privilege is missing on %s; as a superuser, on the primary, run: %s", e.Member, strings.Join(e.Grants, "; "))
}

// The SQLSTATEs that are told apart.
const (
	insufficientPrivilege = "42501"
	notInState            = "55000" // object_not_in_prerequisite_state
)

// sqlState returns the SQLSTATE of a server's answer, or "" if it gave none.
func sqlState(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

// notYet is the error for a context that ended while what was still to come;
// last is the last failure on the way, or nil.
func notYet(ctx context.Context, what string, last error) error {
	if last != nil && !errors.Is(last, context.Cause(ctx)) {
		return fmt.Errorf("%w: %s: %w (the last error: %w)", ErrNotYet, what, context.Cause(ctx), last)
	}
	return fmt.Errorf("%w: %s: %w", ErrNotYet, what, context.Cause(ctx))
}

// orNotYet is err, unless it came only because the context ended: then it is
// notYet for what was still to come.
func orNotYet(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return notYet(ctx, what, nil)
	}
	return err
}
