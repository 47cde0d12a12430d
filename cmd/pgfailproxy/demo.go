package main

import (
	"context"
	"errors"
)

func demoCommand(context.Context, []string, streams) error { return errors.New("not yet") }
