package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// alpn is the protocol that PostgreSQL's clients name when they begin with TLS
// at once.
const alpn = "postgresql"

// read makes a configuration of the files.
func read(files Files) (*loaded, error) {
	cert, err := readFile("client_tls_cert", files.Cert)
	if err != nil {
		return nil, err
	}
	key, err := readFile("client_tls_key", files.Key)
	if err != nil {
		return nil, err
	}
	pair, err := parsePair(files, cert, key)
	if err != nil {
		return nil, err
	}
	c := &tls.Config{
		Certificates: []tls.Certificate{pair},
		MinVersion:   files.MinVersion,
		NextProtos:   []string{alpn},
	}
	if files.CA != "" {
		authorities, err := readFile("client_tls_ca", files.CA)
		if err != nil {
			return nil, err
		}
		c.ClientCAs = x509.NewCertPool()
		if !c.ClientCAs.AppendCertsFromPEM(authorities) {
			return nil, fmt.Errorf("client_tls_ca %s holds no certificate: give it PEM blocks that begin with -----BEGIN CERTIFICATE-----", files.CA)
		}
		c.ClientAuth = tls.VerifyClientCertIfGiven
	}
	return &loaded{config: c, leaf: pair.Leaf}, nil
}

func readFile(setting, path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		var pathErr *fs.PathError
		if errors.As(err, &pathErr) {
			err = pathErr.Err // the path is in the line already
		}
		return nil, fmt.Errorf("%s: read %s: %w: give it the path of a PEM file that the proxy may read", setting, path, err)
	}
	return data, nil
}

// parsePair says which of the two files is wrong, where crypto/tls does not.
func parsePair(files Files, cert, key []byte) (tls.Certificate, error) {
	pair, err := tls.X509KeyPair(cert, key)
	switch {
	case err == nil:
		return pair, nil
	case !hasBlock(cert, "CERTIFICATE"):
		return pair, fmt.Errorf("client_tls_cert %s holds no certificate: give it PEM blocks that begin with -----BEGIN CERTIFICATE-----", files.Cert)
	case bytes.Contains(key, []byte("ENCRYPTED")):
		return pair, fmt.Errorf("client_tls_key %s is encrypted, and the proxy has nobody to ask for its passphrase: decrypt it with openssl pkey -in FILE -out NEW", files.Key)
	case !hasBlock(key, "PRIVATE KEY"):
		return pair, fmt.Errorf("client_tls_key %s holds no private key: give it a PEM block such as -----BEGIN PRIVATE KEY-----", files.Key)
	}
	return pair, fmt.Errorf("client_tls_cert %s and client_tls_key %s do not make a pair: %w: the first certificate of the file must be that of the key", files.Cert, files.Key, err)
}

// hasBlock reports whether there is a PEM block whose type ends so.
func hasBlock(data []byte, kind string) bool {
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			return false
		}
		if bytes.HasSuffix([]byte(block.Type), []byte(kind)) {
			return true
		}
		data = rest
	}
}

// stamp tells files that were replaced from those that were not.
type stamp [3]struct {
	modified time.Time
	size     int64 // -1: there is none
}

func look(files Files) stamp {
	var s stamp
	for i, path := range []string{files.Cert, files.Key, files.CA} {
		s[i].size = -1
		if info, err := os.Stat(path); err == nil {
			s[i].modified, s[i].size = info.ModTime(), info.Size()
		}
	}
	return s
}
