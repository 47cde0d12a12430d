package main

import (
	"context"
	"errors"

	"pgfailproxy/cluster"
	"pgfailproxy/promote"
)

// hands are the Promoter as the controller wants it.
type hands struct {
	*promote.Promoter
	command string // the fence command
}

// FenceCommand runs the fence command against the primary that rec gives up.
func (h hands) FenceCommand(ctx context.Context, rec cluster.Record) error {
	return h.RunFenceCommand(ctx, h.command, rec.Primary, rec.Candidate, rec.Epoch)
}

func notYet(err error) bool { return errors.Is(err, promote.ErrNotYet) }

func refused(err error) bool {
	var p *promote.PrivilegeError
	return errors.As(err, &p) || errors.Is(err, promote.ErrRefused)
}
