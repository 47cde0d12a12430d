# make test     everything: unit, virtual time, real PostgreSQL, containers
# make bench    throughput, cost, what many sessions cost, and the time of a failover; prints tables
# make build    bin/pgfailproxy

.PHONY: test build bench

build:
	CGO_ENABLED=0 go build -trimpath -o bin/pgfailproxy ./cmd/pgfailproxy

# One package at a time: tests of faults need a machine that answers in time.
# Nothing from the cache: it does not see what containers are made from.
test:
	.ci/postgresql
	go vet ./...
	go test -race -exec true ./... >/dev/null # compiles, on all cores
	go test -race -count=1 -p 1 -timeout 20m ./...

bench:
	./bench/run $(BENCHFLAGS)
