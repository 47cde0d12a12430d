package main

import (
	"github.com/jackc/pgx/v5/pgconn"

	"pgfailproxy/config"
	"pgfailproxy/internal/certs"
	"pgfailproxy/proxy"
	"pgfailproxy/verifier"
)

// sessionOptions are the choices for how clients are served. It reads the
// certificate.
func (i *instance) sessionOptions(conns map[string]*pgconn.Config) (proxy.Options, error) {
	cfg := i.config
	opts := proxy.Options{
		HoldTimeout: cfg.HoldTimeout, LoginTimeout: cfg.LoginTimeout, ConnectTimeout: cfg.ConnectTimeout, ClientIdle: cfg.ClientIdle,
		MaxClients: cfg.MaxClientConnections, MaxPerRole: cfg.MaxRoleConnections, MaxPerDatabase: cfg.MaxDatabaseConnections,
		Passthrough: cfg.Sessions == config.Passthrough,
		ServerTLS:   func(member string) proxy.ServerTLS { return serverTLS(conns[member]) },
	}
	if cfg.ClientTLSCert != "" {
		var err error
		i.certs, err = certs.Load(certs.Files{Cert: cfg.ClientTLSCert, Key: cfg.ClientTLSKey, CA: cfg.ClientTLSCA, MinVersion: cfg.TLSMinVersion()}, i.log)
		if err != nil {
			return opts, err
		}
		opts.ClientTLS = &proxy.ClientTLS{ForConnection: i.certs.ForConnection, Required: cfg.ClientTLSRequired}
	}
	if cfg.Auth == config.Terminate {
		i.verifiers = verifier.New(conns)
		opts.Terminate = &proxy.Terminate{Rules: cfg.ClientHBA, Verifiers: i.verifiers}
	}
	return opts, nil
}

// serverTLS is how sessions speak to a member: as its connection string says for
// our own connections. With sslmode=allow they do without.
func serverTLS(conn *pgconn.Config) proxy.ServerTLS {
	t := proxy.ServerTLS{Config: conn.TLSConfig}
	for _, f := range conn.Fallbacks {
		t.Optional = t.Optional || f.TLSConfig == nil
	}
	return t
}
