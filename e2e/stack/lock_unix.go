//go:build unix

package stack

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"
)

// lock waits until no other process holds the lock, which lasts until the file
// is closed, or its process ends.
func lock(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
			return f, nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for another run to end, which holds %s: %w", path, context.Cause(ctx))
		}
	}
}
