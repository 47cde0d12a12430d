// Package health asks one member how it is, every interval, and turns each
// answer, or the lack of one, into a cluster.Observation. It does not judge:
// what observations mean is decided elsewhere.
package health
