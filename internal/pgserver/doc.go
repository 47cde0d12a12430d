// Package pgserver runs real PostgreSQL servers as child processes on this
// machine: a primary and its standbys, and the faults that happen to them
// (stopped, killed, hanging). It is for tests and for the demonstration; it is
// no way to run a database that matters.
//
// Nothing outlives the program that started it. See process for how.
package pgserver
