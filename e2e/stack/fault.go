package stack

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pgfailproxy/admin"
)

// The faults act on one service. Each returns when the fault is made, and some
// are undone by another; Reset undoes all.

// Stop stops a service as docker compose stop does: a member ends its sessions,
// sends everything to its standby, and writes a checkpoint.
func (s *Stack) Stop(ctx context.Context, service string) error {
	return s.act(ctx, "stop", "--time", "30", s.Container(service))
}

// Kill ends all processes of a service at once. Its container does not start
// again by itself.
func (s *Stack) Kill(ctx context.Context, service string) error {
	return s.act(ctx, "kill", s.Container(service))
}

// Start starts a service that was stopped or killed; it may not be ready yet.
func (s *Stack) Start(ctx context.Context, service string) error {
	return s.act(ctx, "start", s.Container(service))
}

// Pause freezes all processes of a service: connections stay, nothing answers.
func (s *Stack) Pause(ctx context.Context, service string) error {
	return s.act(ctx, "pause", s.Container(service))
}

// Unpause lets a service go on where it was.
func (s *Stack) Unpause(ctx context.Context, service string) error {
	return s.act(ctx, "unpause", s.Container(service))
}

// Disconnect cuts a service off the network. It runs on, and nothing that is
// sent to it is answered, not even with a refusal; its name is unknown.
func (s *Stack) Disconnect(ctx context.Context, service string) error {
	return s.act(ctx, "network", "disconnect", "--force", s.network(), s.Container(service))
}

// Connect puts a service back on the network, perhaps with another address.
func (s *Stack) Connect(ctx context.Context, service string) error {
	return s.act(ctx, "network", "connect", "--alias", service, s.network(), s.Container(service))
}

func (s *Stack) act(ctx context.Context, args ...string) error {
	_, err := s.docker(ctx, args...)
	return err
}

// Rejoin makes a member a standby of the present primary with the script that
// is there for it, and returns when the proxy sees it stream.
func (s *Stack) Rejoin(ctx context.Context, member string) error {
	if _, err := s.run(ctx, "", "deploy/rejoin.sh", "--yes", member); err != nil {
		return err
	}
	_, err := s.Await(ctx, readyWithin, member+" streams", streams(member))
	return err
}

// Status asks the proxy.
func (s *Stack) Status(ctx context.Context) (admin.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return admin.Fetch(ctx, s.Admin())
}

// Await asks for the status until ok is true of it, and returns it. The error
// says what was waited for and what the last answer was.
func (s *Stack) Await(ctx context.Context, limit time.Duration, what string, ok func(admin.Status) bool) (admin.Status, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %v", limit))
	defer cancel()
	for {
		status, err := s.Status(ctx)
		if err == nil && ok(status) {
			return status, nil
		}
		select {
		case <-time.After(30 * time.Millisecond):
		case <-ctx.Done():
			if err == nil {
				err = errors.New(describe(status))
			}
			return status, fmt.Errorf("wait until %s: %w: %w", what, context.Cause(ctx), err)
		}
	}
}

// AwaitPair waits until one member is served and the other streams from it with
// nothing outstanding.
func (s *Stack) AwaitPair(ctx context.Context) (admin.Status, error) {
	return s.Await(ctx, readyWithin, "a primary is served and its standby streams", func(status admin.Status) bool {
		return status.Served() && streams(Other(status.Primary))(status)
	})
}

// Other is the member that is not this one.
func Other(member string) string {
	if member == Members[0] {
		return Members[1]
	}
	return Members[0]
}

// streams reports of a status whether the member is a standby that streams from
// the primary and has replayed what it received.
func streams(member string) func(admin.Status) bool {
	return func(status admin.Status) bool {
		for _, m := range status.Members {
			if m.Name == member {
				return m.Reach == "answered" && m.Role == "standby" && m.Streaming &&
					m.Timeline == status.Timeline && m.Replayed >= m.LSN
			}
		}
		return false
	}
}

// describe says in one line what a status holds.
func describe(status admin.Status) string {
	text := "the proxy is serving " + status.Primary
	if !status.Served() {
		text = status.Why()
	}
	for _, m := range status.Members {
		text += fmt.Sprintf("; %s: %s, %s, timeline %d, %s", m.Name, m.Reach, m.Role, m.Timeline, m.LSN)
	}
	return text
}
