package pgwire

import (
	"crypto"
	_ "crypto/sha512" // SHA-384 and SHA-512, for crypto.Hash
	"crypto/x509"
)

// Endpoint is what channel binding binds to: the hash of the certificate that
// the server of a TLS connection showed (tls-server-end-point, RFC 5929). It is
// nil for a certificate whose signature has no hash of its own, such as Ed25519:
// for that no binding is defined, and SCRAM goes without.
func Endpoint(server *x509.Certificate) []byte {
	var hash crypto.Hash
	switch server.SignatureAlgorithm {
	case x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1, // too weak: SHA-256, says the RFC
		x509.SHA256WithRSA, x509.SHA256WithRSAPSS, x509.ECDSAWithSHA256:
		hash = crypto.SHA256
	case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
		hash = crypto.SHA384
	case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
		hash = crypto.SHA512
	default:
		return nil
	}
	h := hash.New()
	h.Write(server.Raw)
	return h.Sum(nil)
}
