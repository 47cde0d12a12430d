package main

import "context"

func failover(ctx context.Context, o options) error { return nil }
