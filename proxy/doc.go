// Package proxy carries sessions: it accepts clients, has them wait for a
// primary, and moves their bytes to it and back for as long as it is one.
//
// Router is the local copy of the Record: where sessions may go. Server accepts
// clients. What a session sends and receives is not looked at once it has begun.
package proxy
