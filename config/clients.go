package config

import (
	"crypto/tls"
	"errors"
	"fmt"

	"pgfailproxy/hba"
)

// TLSMinVersion returns ClientTLSMinVersion as package crypto/tls has it.
func (c *Config) TLSMinVersion() uint16 {
	if c.ClientTLSMinVersion == TLS13 {
		return tls.VersionTLS13
	}
	return tls.VersionTLS12
}

// checkClients refuses settings for clients that cannot work together.
func (c *Config) checkClients() error {
	if err := c.checkPassthrough(); err != nil {
		return err
	}
	if err := c.checkClientTLS(); err != nil {
		return err
	}
	switch {
	case c.Auth == Terminate && len(c.ClientHBA) == 0:
		return errors.New("auth: terminate needs client_hba, or nobody could log in: add rules such as \"hostssl all all all scram-sha-256\"")
	case c.Auth == Relay && len(c.ClientHBA) > 0:
		return errors.New("client_hba has no effect with auth: relay, where the server decides who may log in: set auth: terminate, or remove client_hba")
	}
	return nil
}

// checkPassthrough refuses what needs sessions to be followed.
func (c *Config) checkPassthrough() error {
	if c.Sessions != Passthrough {
		return nil
	}
	for _, needs := range []struct {
		set  bool
		text string
	}{
		{c.Auth != Relay, "auth: " + c.Auth},
		{len(c.ClientHBA) > 0, "client_hba"},
		{c.ClientTLSCert != "", "client_tls_cert"},
		{c.ClientTLSKey != "", "client_tls_key"},
		{c.ClientTLSCA != "", "client_tls_ca"},
		{c.ClientTLSMinVersion != TLS12, "client_tls_min_version"},
		{c.ClientTLSRequired, "client_tls_required"},
		{c.MaxRoleConnections != 0, "max_role_connections"},
		{c.MaxDatabaseConnections != 0, "max_database_connections"},
		{c.ClientIdle != 0, "client_idle"},
	} {
		if needs.set {
			return fmt.Errorf("%s cannot be with sessions: passthrough, where the proxy does not look at what it moves: remove it, or set sessions: follow", needs.text)
		}
	}
	return nil
}

func (c *Config) checkClientTLS() error {
	switch {
	case c.ClientTLSCert != "" && c.ClientTLSKey == "":
		return errors.New("client_tls_cert needs client_tls_key: name the file with the certificate's key, which may be the same file")
	case c.ClientTLSCert == "" && c.ClientTLSKey != "":
		return errors.New("client_tls_key needs client_tls_cert: name the file with the key's certificate, which may be the same file")
	case c.ClientTLSCert == "" && c.ClientTLSCA != "":
		return errors.New("client_tls_ca has no effect without TLS for clients: set client_tls_cert and client_tls_key, or remove it")
	case c.ClientTLSCert == "" && c.ClientTLSRequired:
		return errors.New("client_tls_required needs TLS for clients, or nobody could connect: set client_tls_cert and client_tls_key")
	}
	for _, r := range c.ClientHBA {
		switch {
		case r.Transport == hba.HostSSL && c.ClientTLSCert == "":
			return fmt.Errorf("client_hba: the rule %q needs TLS for clients: set client_tls_cert and client_tls_key, or write host", r)
		case r.Method == hba.Cert && c.ClientTLSCA == "":
			return fmt.Errorf("client_hba: the rule %q needs client_tls_ca: name the file with the authorities that clients' certificates are checked against", r)
		}
	}
	return nil
}

// clientWarnings returns Warnings about clients.
func (c *Config) clientWarnings() []string {
	var out []string
	if c.Auth == Terminate && c.ClientTLSCert == "" {
		out = append(out, "auth: terminate without TLS for clients: what they send can be read and changed on the way: set client_tls_cert and client_tls_key")
	}
	for _, r := range c.ClientHBA {
		if r.Method == hba.Trust {
			out = append(out, fmt.Sprintf("client_hba: the rule %q lets clients in without a password as any role that they name: write scram-sha-256 unless that is meant", r))
		}
		if r.Transport == hba.HostNoSSL && c.ClientTLSRequired && r.Method != hba.Reject {
			out = append(out, fmt.Sprintf("client_hba: the rule %q never matches, because client_tls_required refuses clients without TLS: remove one of them", r))
		}
	}
	return out
}
