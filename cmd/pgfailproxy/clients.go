package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
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
		if i.certs, err = certs.Load(certFiles(cfg), i.log); err != nil {
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

func certFiles(cfg *config.Config) certs.Files {
	return certs.Files{Cert: cfg.ClientTLSCert, Key: cfg.ClientTLSKey, CA: cfg.ClientTLSCA, MinVersion: cfg.TLSMinVersion()}
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
func checkCertificates(ctx context.Context, cfg *config.Config, ours *x509.Certificate) error {
	if cfg.Auth != config.Relay {
		return nil
	}
	for _, m := range cfg.Members {
		theirs := certificate(ctx, m.Conn)
		if theirs != nil && !theirs.Equal(ours) {
			return fmt.Errorf("client_tls_cert is not the certificate of member %s, which is spoken to over TLS too: with auth: relay clients bind their login to the certificate that they see, and the server would refuse it: set auth: terminate, or sslmode=disable in the connection string of %s, or give both the same certificate", m.Name, m.Name)
		}
	}
	return nil
}

// certificate returns what a member shows; nil if it is spoken to without TLS, or
// does not answer.
func certificate(ctx context.Context, conn *pgconn.Config) *x509.Certificate {
	if conn.TLSConfig == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, certificateTimeout)
	defer cancel()
	pg, err := pgconn.ConnectConfig(ctx, conn.Copy())
	if err != nil {
		return nil
	}
	defer pg.Close(ctx)
	if c, encrypted := pg.Conn().(*tls.Conn); encrypted {
		return c.ConnectionState().PeerCertificates[0]
	}
	return nil
}
