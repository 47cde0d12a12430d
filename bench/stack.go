package main

import (
	"context"
	"errors"
	"fmt"

	"pgfailproxy/admin"
	"pgfailproxy/e2e/stack"
)

// stackWorld runs in containers, as docker-compose.yml has them.
type stackWorld struct {
	*stack.Stack
	fresh bool // was just made and not used yet
}

func newStackWorld(ctx context.Context, _ options) (world, error) {
	progress("building the proxy's image and starting the containers")
	s, err := stack.Up(ctx, stack.Options{Project: "pgfailproxy-bench"})
	w := &stackWorld{s, true}
	if err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

func (w *stackWorld) about() string {
	return "Servers: containers of docker-compose.yml with " + image + ", fsync on; pgfailproxy with the configuration that is there. Clients come in through a published port. The commands are docker's: kill, stop, pause, network disconnect"
}

func (w *stackWorld) faults() []string { return []string{"kill", "stop", "pause", "disconnect"} }
func (w *stackWorld) conn() string     { return w.URL() }

func (w *stackWorld) status(ctx context.Context) (admin.Status, error) { return w.Status(ctx) }

func (w *stackWorld) renew(ctx context.Context) error {
	if w.fresh {
		w.fresh = false
		return nil
	}
	return w.Reset(ctx)
}

func (w *stackWorld) strike(ctx context.Context, fault string) error {
	member := stack.Members[0]
	switch fault {
	case "kill":
		return w.Kill(ctx, member)
	case "stop":
		return w.Stop(ctx, member)
	case "pause":
		return w.Pause(ctx, member)
	case "disconnect":
		return w.Disconnect(ctx, member)
	}
	return fmt.Errorf("%q cannot be done to a container", fault)
}

// close removes the containers, also when the run was interrupted.
func (w *stackWorld) close() error { return w.Down(context.Background()) }
