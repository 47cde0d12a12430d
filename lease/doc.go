// Package lease keeps the right to decide and the Record that says who is
// primary.
//
// With one proxy both are one file: whoever holds its lock may decide, and a
// Record in it outlives a crash of the proxy at any line.
package lease
