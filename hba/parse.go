package hba

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// form is what a rule looks like, for errors.
const form = `"host DATABASE USER ADDRESS METHOD", such as "hostssl all app 10.0.0.0/8 scram-sha-256"`

// Parse reads one line of the form of pg_hba.conf:
//
//	host|hostssl|hostnossl  DATABASE  USER  ADDRESS  METHOD
//
// Databases and users are a name, a list with commas, or all; one in double
// quotes is a name whatever it looks like. A database may also be sameuser or
// replication. An address is a network such as 10.0.0.0/8, one IP address, or
// all. What follows a # is a comment. An error says in one sentence what to
// write.
func Parse(line string) (Rule, error) {
	fields, err := split(line)
	if err != nil {
		return Rule{}, err
	}
	if len(fields) != 5 {
		return Rule{}, countError(fields)
	}
	var r Rule
	if r.Transport, err = parseTransport(fields[0]); err != nil {
		return Rule{}, err
	}
	if r.databases, err = parseNames("database", fields[1], "all", "sameuser", "replication"); err != nil {
		return Rule{}, err
	}
	if r.users, err = parseNames("user", fields[2], "all"); err != nil {
		return Rule{}, err
	}
	if r.addresses, err = parseAddress(fields[3]); err != nil {
		return Rule{}, err
	}
	if r.Method, err = parseMethod(fields[4]); err != nil {
		return Rule{}, err
	}
	if r.Method == Cert && r.Transport != HostSSL {
		return Rule{}, errors.New("the method cert needs a client with TLS: write hostssl in place of " + r.Transport.String())
	}
	return r, nil
}

var errLocal = errors.New("clients reach the proxy over TCP only: write host, hostssl or hostnossl in place of local, and an address")

func countError(fields [][]token) error {
	switch n := len(fields); {
	case n == 0:
		return errors.New("the rule is empty: write " + form)
	case single(fields[0]) == "local":
		return errLocal
	case n == 6 && isIP(fields[3]) && isIP(fields[4]):
		return fmt.Errorf("the address has a mask of its own: write it as a network, such as %s/24", fields[3][0].text)
	case n > 5:
		return errors.New("the rule goes on after its method: options are not supported, so write only " + form)
	}
	return fmt.Errorf("the rule has %d of 5 fields: write %s", len(fields), form)
}

func isIP(field []token) bool {
	_, err := netip.ParseAddr(field[0].text)
	return err == nil
}

func parseTransport(field []token) (Transport, error) {
	word := single(field)
	if i := slices.Index(transports, word); i >= 0 {
		return Transport(i), nil
	}
	if word == "local" {
		return 0, errLocal
	}
	return 0, fmt.Errorf("a rule begins with host, hostssl or hostnossl, not with %q: write %s", word, form)
}

func parseNames(what string, field []token, keywords ...string) ([]name, error) {
	out := make([]name, 0, len(field))
	for _, t := range field {
		switch {
		case t.text == "":
			return nil, fmt.Errorf("a %s has an empty name: write a name or all", what)
		case t.quoted:
		case strings.ContainsAny(t.text[:1], "+/@"), t.text == "samerole", t.text == "samegroup":
			return nil, fmt.Errorf("the %s %s is not supported (groups, patterns and files are not): name each %s, or put a name that looks so into double quotes", what, t.text, what)
		}
		out = append(out, name{t.text, !t.quoted && slices.Contains(keywords, t.text)})
	}
	return out, nil
}

func parseAddress(field []token) (netip.Prefix, error) {
	word := single(field)
	if word == "all" {
		return netip.Prefix{}, nil
	}
	if addr, err := netip.ParseAddr(word); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(word)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not an address: write a network such as 10.0.0.0/8, one IP address, or all (names of hosts are not supported)", word)
	}
	p = p.Masked()
	if p.Addr().Is4In6() { // then the mask covers all of ::ffff:0:0/96
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p, nil
}

func parseMethod(field []token) (Method, error) {
	word := single(field)
	for m, w := range methods {
		if w == word {
			return m, nil
		}
	}
	return None, fmt.Errorf("the method %q is not supported: write scram-sha-256, cert, trust or reject", word)
}

// String returns a line that Parse makes the same rule of.
func (r Rule) String() string {
	address := "all"
	if p := r.addresses; p.IsValid() {
		address = p.String()
	}
	return strings.Join([]string{r.Transport.String(), join(r.databases), join(r.users), address, r.Method.String()}, " ")
}

func join(names []name) string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = n.String()
	}
	return strings.Join(out, ",")
}

// String quotes a name, unless it is an ordinary one.
func (n name) String() string {
	ordinary := !strings.ContainsAny(n.text, ` ,"#`) && !strings.ContainsAny(n.text[:1], "+/@")
	switch n.text {
	case "all", "sameuser", "samerole", "samegroup", "replication":
		ordinary = false
	}
	if n.keyword || ordinary {
		return n.text
	}
	return `"` + strings.ReplaceAll(n.text, `"`, `""`) + `"`
}
