// Package cluster is the vocabulary of pgfailproxy: positions in the WAL,
// members and what was observed of them, and the Record that says who is
// primary. It does no I/O, starts no goroutine and reads no clock, so that
// everyone may depend on it and it depends on no one.
package cluster
