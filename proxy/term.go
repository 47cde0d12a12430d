package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"pgfailproxy/cluster"
)

// GoneError is why a Route ended.
type GoneError struct {
	Member string
	At     time.Time
}

func (e *GoneError) Error() string { return fmt.Sprintf("%s is no longer the primary", e.Member) }

// term is the time of a member as primary in one epoch. Routes to several
// addresses may belong to it, if the member moves.
type term struct {
	member string
	epoch  cluster.Epoch
	log    *slog.Logger
	ctx    context.Context
	end    context.CancelCauseFunc

	mu       sync.Mutex // guards what follows
	sessions map[*session]struct{}
	over     bool
	told     map[string]int // of the sessions that ended with it: how many, by what they were told
}

func newTerm(member string, epoch cluster.Epoch, log *slog.Logger) *term {
	t := &term{member: member, epoch: epoch, log: log, sessions: map[*session]struct{}{}, told: map[string]int{}}
	t.ctx, t.end = context.WithCancelCause(context.Background())
	context.AfterFunc(t.ctx, t.cut) // who ends it must not wait for thousands
	return t
}

// cut ends the sessions of a term that is over.
func (t *term) cut() {
	t.mu.Lock()
	t.over = true
	all := slices.Collect(maps.Keys(t.sessions))
	t.report() // a server that dies ends its sessions before it is given up
	t.mu.Unlock()
	for _, s := range all {
		s.cut(context.Cause(t.ctx))
	}
}

// join has the end of the term cut s. It reports false if the term is over.
func (t *term) join(s *session) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return false
	}
	t.sessions[s] = struct{}{}
	return true
}

// leave is the end of a session of the term, and what its client was told.
func (t *term) leave(s *session, told string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.sessions, s)
	if t.over || told != "" {
		t.told[told]++
	}
	t.report()
}

// survived: the member lost sessions, and is the primary all the same.
func (t *term) survived() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.told)
}

// report says, when the last session has ended with the term, how many did. t.mu
// is held.
func (t *term) report() {
	if !t.over || len(t.sessions) > 0 || len(t.told) == 0 {
		return
	}
	n := 0
	for _, k := range t.told {
		n += k
	}
	t.log.Info("sessions ended with their primary", "member", t.member, "epoch", t.epoch, "sessions", n,
		"idle", t.told[codeSessionLost], "rolled_back", t.told[codeRolledBack], "in_doubt", t.told[codeInDoubt])
}

func (t *term) running() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.sessions)
}
