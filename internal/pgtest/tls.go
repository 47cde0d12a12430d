package pgtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"pgfailproxy/internal/pgserver"
)

// Certificate makes a certificate that signs itself, valid for some hours around
// now, also where time is virtual. Its Leaf is set.
func Certificate(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(100 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// EnableTLS gives s a certificate and waits until it uses it.
func EnableTLS(t testing.TB, s *pgserver.Server, cert tls.Certificate) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]pem.Block{
		"server.crt": {Type: "CERTIFICATE", Bytes: cert.Certificate[0]},
		"server.key": {Type: "PRIVATE KEY", Bytes: key},
	} {
		belongToServer(t, s, name, pem.EncodeToMemory(&block))
	}
	Exec(t, s, "alter system set ssl = on")
	Exec(t, s, "select pg_reload_conf()")
	Until(t, 10*time.Second, func() error { // new connections have what the postmaster has read
		if on := Value[string](t, s, "show ssl"); on != "on" {
			return fmt.Errorf("ssl is %s", on)
		}
		return nil
	})
}

// belongToServer puts a file where the server's own are, for its user alone, as
// PostgreSQL wants its key.
func belongToServer(t testing.TB, s *pgserver.Server, name string, content []byte) {
	t.Helper()
	dir := Value[string](t, s, "show data_directory")
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	if err := os.Chown(path, int(owner.Uid), int(owner.Gid)); err != nil {
		t.Fatal(err)
	}
}
