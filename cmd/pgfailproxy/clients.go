package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

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

// certificateTimeout is how long each member may take to show its certificate at
// the start.
const certificateTimeout = 2 * time.Second

// checkCertificates refuses TLS on both sides with auth: relay, unless the
// certificates are the same: clients bind a login to the one that they see, and
// the server would not take it. A member that does not answer is not looked at.
func (i *instance) checkCertificates(ctx context.Context) error {
	if i.certs == nil || i.config.Auth != config.Relay {
		return nil
	}
	_, ours := i.certs.ForConnection()
	for _, m := range i.config.Members {
		if m.Conn.TLSConfig == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, certificateTimeout)
		pg, err := pgconn.ConnectConfig(ctx, m.Conn.Copy())
		cancel()
		if err != nil {
			continue
		}
		c, encrypted := pg.Conn().(*tls.Conn)
		differs := encrypted && !c.ConnectionState().PeerCertificates[0].Equal(ours)
		pg.Close(context.WithoutCancel(ctx))
		if differs {
			return fmt.Errorf("client_tls_cert is not the certificate of member %s, which is spoken to over TLS too: with auth: relay clients bind their login to the certificate that they see, and the server would refuse it: set auth: terminate, or sslmode=disable in the connection string of %s, or give both the same certificate", m.Name, m.Name)
		}
	}
	return nil
}
