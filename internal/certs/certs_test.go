package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// issued is a certificate with its key.
type issued struct {
	leaf      *x509.Certificate
	signer    crypto.Signer
	cert, key []byte // PEM
}

// issue makes a certificate that signs itself, or is signed by ca.
func issue(t testing.TB, name string, signer crypto.Signer, ca *issued, change func(*x509.Certificate)) *issued {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: []string{"proxy"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IsCA: ca == nil, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(template)
	}
	parent, parentSigner := template, signer
	if ca != nil {
		parent, parentSigner = ca.leaf, ca.signer
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, signer.Public(), parentSigner)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		t.Fatal(err)
	}
	return &issued{leaf, signer, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})}
}

func ecKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// place is a folder with the files of a proxy.
type place struct {
	t     testing.TB
	files Files
	tick  time.Time
	log   bytes.Buffer
}

func newPlace(t testing.TB) *place {
	dir := t.TempDir()
	return &place{t: t, files: Files{Cert: filepath.Join(dir, "c.pem"), Key: filepath.Join(dir, "k.pem"), MinVersion: tls.VersionTLS12}, tick: time.Now().Add(-time.Hour)}
}

// put writes a file with a time of its own, so that no test depends on how fine
// the file system's clock is.
func (p *place) put(path string, data []byte) {
	p.t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		p.t.Fatal(err)
	}
	p.tick = p.tick.Add(time.Second)
	if err := os.Chtimes(path, p.tick, p.tick); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) install(c *issued) {
	p.t.Helper()
	p.put(p.files.Cert, c.cert)
	p.put(p.files.Key, c.key)
}

func (p *place) load() *Keeper {
	p.t.Helper()
	k, err := Load(p.files, slog.New(slog.NewTextHandler(&p.log, nil)))
	if err != nil {
		p.t.Fatal(err)
	}
	return k
}

// later makes the keeper believe that its last look was just long enough ago.
func later(k *Keeper) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.looked = time.Now().Add(-lookEvery)
}

// shake shakes hands as a client, and returns the certificate that it saw and
// the state at the server.
func shake(t testing.TB, k *Keeper, client *tls.Config) (saw *x509.Certificate, bound *x509.Certificate, server tls.ConnectionState, err error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	config, leaf := k.ForConnection()
	s, c := tls.Server(a, config), tls.Client(b, client)
	done := make(chan error, 1)
	go func() {
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		a.Close()
		done <- err
	}()
	_, err = io.ReadFull(c, make([]byte, 1)) // TLS 1.3: a refusal comes after the client's handshake
	b.Close()
	if serverErr := <-done; err != nil {
		return nil, nil, server, fmt.Errorf("client: %w, server: %v", err, serverErr)
	}
	return c.ConnectionState().PeerCertificates[0], leaf, s.ConnectionState(), nil
}

var anybody = &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"postgresql"}}

func TestAClientIsShownTheCertificateThatItsLoginIsBoundTo(t *testing.T) {
	p := newPlace(t)
	one, two := issue(t, "one", ecKey(t), nil, nil), issue(t, "two", ecKey(t), nil, nil)
	p.install(one)
	k := p.load()
	for _, want := range []*issued{one, two} {
		p.install(want)
		later(k)
		saw, bound, state, err := shake(t, k, anybody)
		if err != nil {
			t.Fatal(err)
		}
		if !saw.Equal(want.leaf) || !bound.Equal(want.leaf) {
			t.Errorf("the client saw %s, its login would be bound to %s; want %s", saw.Subject, bound.Subject, want.leaf.Subject)
		}
		if state.NegotiatedProtocol != "postgresql" {
			t.Errorf("protocol %q", state.NegotiatedProtocol)
		}
	}
	if n := strings.Count(p.log.String(), "read again"); n != 2 { // touched, then replaced
		t.Errorf("read again %d times:\n%s", n, &p.log)
	}
}

// A handshake that began with the old files must go on with them.
func TestAHandshakeKeepsTheCertificateThatItBeganWith(t *testing.T) {
	p := newPlace(t)
	one, two := issue(t, "one", ecKey(t), nil, nil), issue(t, "two", ecKey(t), nil, nil)
	p.install(one)
	k := p.load()
	config, leaf := k.ForConnection()
	p.install(two)
	if err := k.Reload(); err != nil {
		t.Fatal(err)
	}
	if !leaf.Equal(one.leaf) || !config.Certificates[0].Leaf.Equal(one.leaf) {
		t.Error("it was exchanged")
	}
	if _, leaf = k.ForConnection(); !leaf.Equal(two.leaf) {
		t.Error("the next has the old one")
	}
}

func TestTheFilesAreLookedAtOnceASecond(t *testing.T) {
	p := newPlace(t)
	one, two := issue(t, "one", ecKey(t), nil, nil), issue(t, "two", ecKey(t), nil, nil)
	p.install(one)
	k := p.load()
	k.mu.Lock()
	k.looked = time.Now().Add(time.Hour) // just now, however slow this machine is
	k.mu.Unlock()
	p.install(two)
	if _, leaf := k.ForConnection(); !leaf.Equal(one.leaf) {
		t.Error("they were looked at within a second")
	}
	later(k)
	if _, leaf := k.ForConnection(); !leaf.Equal(two.leaf) {
		t.Error("they were not looked at after a second")
	}
}

func TestBrokenNewFilesAreReportedOnceAndTheOldOnesStay(t *testing.T) {
	p := newPlace(t)
	one, two := issue(t, "one", ecKey(t), nil, nil), issue(t, "two", ecKey(t), nil, nil)
	p.install(one)
	k := p.load()
	p.put(p.files.Cert, two.cert) // the key is still to come
	for range 3 {
		later(k)
		if _, leaf := k.ForConnection(); !leaf.Equal(one.leaf) {
			t.Fatal("the old one did not stay")
		}
	}
	if n := strings.Count(p.log.String(), "the old ones stay"); n != 1 || !strings.Contains(p.log.String(), "do not make a pair") {
		t.Errorf("reported %d times:\n%s", n, &p.log)
	}
	if err := k.Reload(); err == nil {
		t.Error("Reload is content with files that do not belong together")
	}
	os.Remove(p.files.Key)
	later(k)
	if _, leaf := k.ForConnection(); !leaf.Equal(one.leaf) {
		t.Fatal("the old one did not stay")
	}
	p.put(p.files.Key, two.key)
	later(k)
	if _, leaf := k.ForConnection(); !leaf.Equal(two.leaf) {
		t.Errorf("whole files are not taken:\n%s", &p.log)
	}
}

func TestManyHandshakesAtOnceWhileTheFilesChange(t *testing.T) {
	p := newPlace(t)
	all := []*issued{issue(t, "one", ecKey(t), nil, nil), issue(t, "two", ecKey(t), nil, nil)}
	p.install(all[0])
	k := p.load()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				saw, bound, _, err := shake(t, k, anybody)
				if err != nil {
					t.Error(err)
				} else if !saw.Equal(bound) {
					t.Errorf("saw %s, bound to %s", saw.Subject, bound.Subject)
				}
			}
		})
	}
	for i := range 20 {
		p.install(all[i%2])
		later(k)
	}
	wg.Wait()
}

func TestWrongFilesAreNamedWithTheirSetting(t *testing.T) {
	one, two := issue(t, "one", ecKey(t), nil, nil), issue(t, "two", ecKey(t), nil, nil)
	for name, tt := range map[string]struct {
		spoil func(p *place)
		want  []string
	}{
		"no certificate": {func(p *place) { os.Remove(p.files.Cert) }, []string{"client_tls_cert: read ", "c.pem: no such file", "give it"}},
		"no key":         {func(p *place) { os.Remove(p.files.Key) }, []string{"client_tls_key: read ", "k.pem: no such file"}},
		"other key":      {func(p *place) { p.put(p.files.Key, two.key) }, []string{"do not make a pair", "private key does not match"}},
		"exchanged":      {func(p *place) { p.put(p.files.Cert, one.key); p.put(p.files.Key, one.cert) }, []string{"client_tls_cert", "holds no certificate"}},
		"key is none":    {func(p *place) { p.put(p.files.Key, one.cert) }, []string{"client_tls_key", "holds no private key"}},
		"empty":          {func(p *place) { p.put(p.files.Cert, nil) }, []string{"holds no certificate"}},
		"encrypted": {func(p *place) {
			p.put(p.files.Key, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")}))
		}, []string{"client_tls_key", "is encrypted", "openssl pkey"}},
		"no authorities":    {func(p *place) { p.files.CA = filepath.Join(filepath.Dir(p.files.Cert), "ca.pem") }, []string{"client_tls_ca: read ", "no such file"}},
		"empty authorities": {func(p *place) { p.files.CA = p.files.Cert + ".ca"; p.put(p.files.CA, []byte("x")) }, []string{"client_tls_ca", "holds no certificate"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			p.install(one)
			tt.spoil(p)
			_, err := Load(p.files, slog.New(slog.DiscardHandler))
			if err == nil {
				t.Fatal("it was accepted")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
					t.Errorf("error: %s\nlacks: %s", err, want)
				}
			}
		})
	}
}

func TestOneFileMayHoldCertificateAndKey(t *testing.T) {
	p := newPlace(t)
	one := issue(t, "one", ecKey(t), nil, nil)
	p.put(p.files.Cert, append(bytes.Clone(one.key), one.cert...))
	p.files.Key = p.files.Cert
	if _, leaf := p.load().ForConnection(); !leaf.Equal(one.leaf) {
		t.Error("another certificate")
	}
}

func TestWhoeverWillNotDoIsWarnedOf(t *testing.T) {
	for want, change := range map[string]string{
		"":              "nothing",
		"expired on":    "past",
		"expires on":    "soon",
		"is valid from": "future",
	} {
		p := newPlace(t)
		p.install(issue(t, "one", ecKey(t), nil, func(c *x509.Certificate) {
			switch change {
			case "past":
				c.NotBefore, c.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(-time.Hour)
			case "soon":
				c.NotAfter = time.Now().Add(time.Hour)
			case "future":
				c.NotBefore = time.Now().Add(time.Hour)
			}
		}))
		got := p.load().Warnings()
		if (want == "") != (len(got) == 0) || want != "" && !strings.Contains(got[0], want) {
			t.Errorf("%s: warnings %q", change, got)
		}
	}
}

func TestClientsMayShowACertificateOfTheAuthorityAndNoOther(t *testing.T) {
	p := newPlace(t)
	ca, stranger := issue(t, "ca", ecKey(t), nil, nil), issue(t, "stranger", ecKey(t), nil, nil)
	p.install(issue(t, "proxy", ecKey(t), ca, nil))
	p.files.CA = p.files.Cert + ".ca"
	p.put(p.files.CA, ca.cert)
	k := p.load()
	with := func(c *issued) *tls.Config {
		config := anybody.Clone()
		config.Certificates = []tls.Certificate{{Certificate: [][]byte{c.leaf.Raw}, PrivateKey: c.signer}}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &config.Certificates[0], nil }
		return config
	}
	if _, _, state, err := shake(t, k, anybody); err != nil || len(state.VerifiedChains) != 0 {
		t.Errorf("without one: %v, chains %d", err, len(state.VerifiedChains))
	}
	_, _, state, err := shake(t, k, with(issue(t, "app", ecKey(t), ca, nil)))
	if err != nil || len(state.VerifiedChains) != 1 || state.VerifiedChains[0][0].Subject.CommonName != "app" {
		t.Errorf("of the authority: %v, chains %v", err, state.VerifiedChains)
	}
	if _, _, _, err := shake(t, k, with(stranger)); err == nil {
		t.Error("a stranger's certificate was accepted")
	}
}

func TestTheLeastVersionIsKept(t *testing.T) {
	p := newPlace(t)
	p.install(issue(t, "one", ecKey(t), nil, nil))
	p.files.MinVersion = tls.VersionTLS13
	old := anybody.Clone()
	old.MaxVersion = tls.VersionTLS12
	if _, _, _, err := shake(t, p.load(), old); err == nil {
		t.Error("TLS 1.2 was accepted")
	}
}
