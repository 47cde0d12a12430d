// Package pgwire reads the start of a PostgreSQL connection and writes what the
// proxy says on one.
//
// What strangers send is parsed here, bounded in size and without trust.
// pgproto3 encodes the proxy's own messages; its decoders panic or never end on
// hostile input, so it decodes nothing.
package pgwire
