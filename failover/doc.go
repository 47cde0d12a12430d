// Package failover decides who is primary.
//
// Machine is the decision: a pure function of what was observed and done so
// far, without I/O, goroutine or clock. Controller is the one goroutine that
// feeds it and carries out what it says, through the small interfaces that this
// package states for the store of the Record, the hands on PostgreSQL and the
// route of the sessions.
package failover
