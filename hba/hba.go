// Package hba says who may log in through the proxy and how they must prove who
// they are. Servers see the proxy's address only, so what their pg_hba.conf says
// of clients has to be said here: in the same form, of which the proxy
// understands a part and refuses the rest.
package hba

import (
	"net/netip"
	"slices"
)

// Method is how a client proves that it is the role that it names.
type Method uint8

const (
	None        Method = iota // no rule matches: not let in
	Reject                    // not let in
	Trust                     // it is believed
	ScramSHA256               // it proves that it knows the role's password
	Cert                      // its TLS certificate has the role's name
)

var methods = map[Method]string{Reject: "reject", Trust: "trust", ScramSHA256: "scram-sha-256", Cert: "cert"}

// String returns the word of pg_hba.conf.
func (m Method) String() string {
	if word, ok := methods[m]; ok {
		return word
	}
	return "none"
}

// Transport is the kind of connection that a rule is for.
type Transport uint8

const (
	Host      Transport = iota // with TLS or without
	HostSSL                    // with TLS
	HostNoSSL                  // without
)

var transports = []string{Host: "host", HostSSL: "hostssl", HostNoSSL: "hostnossl"}

// String returns the word of pg_hba.conf.
func (t Transport) String() string { return transports[t] }

// Rule is one line. Parse makes it.
type Rule struct {
	Transport Transport
	Method    Method

	databases, users []name
	// addresses has no zone, and an IPv4-mapped network is an IPv4 one. The zero
	// Prefix means all.
	addresses netip.Prefix
}

// name is one entry of a list of databases or users.
type name struct {
	text    string
	keyword bool // all, sameuser or replication, not in quotes
}

// Client is what is known of a client when it has said what it wants.
type Client struct {
	TLS      bool
	CertCN   string // common name of its verified certificate; empty if it showed none
	Addr     netip.Addr
	Database string // as the server will take it: the role's name if none was given
	User     string
	// Replication is set for physical replication (replication=true), which is of
	// no database and is let in by rules that name it only. With
	// replication=database a client is one of its database, as any other.
	Replication bool
}

// Rules are asked in their order: the first that matches decides. Without any,
// nobody is let in.
type Rules []Rule

// Match returns how the client has to prove who it is. It is not ok if the
// client must be turned away whatever it could prove; the method says why: None,
// Reject, or Cert for one whose certificate is missing or of another name.
func (rules Rules) Match(c Client) (m Method, ok bool) {
	c.Addr = c.Addr.Unmap().WithZone("")
	for i := range rules {
		if !rules[i].matches(c) {
			continue
		}
		switch m := rules[i].Method; m {
		case Trust, ScramSHA256:
			return m, true
		case Cert:
			// A role without a name does not exist, but must not match no certificate.
			return m, c.TLS && c.CertCN != "" && c.CertCN == c.User
		default:
			return m, false
		}
	}
	return None, false
}

func (r *Rule) matches(c Client) bool {
	switch {
	case r.Transport == HostSSL && !c.TLS, r.Transport == HostNoSSL && c.TLS:
		return false
	case r.addresses.IsValid() && !r.addresses.Contains(c.Addr):
		return false
	}
	return slices.ContainsFunc(r.databases, func(n name) bool { return n.isDatabase(c) }) &&
		slices.ContainsFunc(r.users, func(n name) bool { return n.keyword || n.text == c.User })
}

// isDatabase follows check_db of PostgreSQL's hba.c.
func (n name) isDatabase(c Client) bool {
	switch {
	case c.Replication:
		return n.keyword && n.text == "replication"
	case !n.keyword:
		return n.text == c.Database
	case n.text == "sameuser":
		return c.Database == c.User
	}
	return n.text == "all"
}
