package certs

import (
	"crypto"
	_ "crypto/sha256" // register the hashes that EndPoint uses
	_ "crypto/sha512"
	"crypto/x509"
)

// EndPoint returns what SCRAM's channel binding "tls-server-end-point" is for a
// certificate (RFC 5929, section 4.1): its hash, by the hash function of its
// signature, with SHA-256 in place of MD5 and SHA-1.
//
// It is nil where no hash function belongs to the signature, as with Ed25519:
// RFC 5929 leaves that undefined and clients fail when they are offered channel
// binding, so it must not be offered.
func EndPoint(cert *x509.Certificate) []byte {
	var h crypto.Hash
	switch cert.SignatureAlgorithm {
	case x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1,
		x509.SHA256WithRSA, x509.SHA256WithRSAPSS, x509.DSAWithSHA256, x509.ECDSAWithSHA256:
		h = crypto.SHA256
	case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
		h = crypto.SHA384
	case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
		h = crypto.SHA512
	default:
		return nil
	}
	sum := h.New()
	sum.Write(cert.Raw)
	return sum.Sum(nil)
}
