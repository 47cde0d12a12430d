package pgwire

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
)

// The names of SCRAM (RFC 5802, 7677): without and with channel binding.
const (
	ScramPlain = "SCRAM-SHA-256"
	ScramPlus  = "SCRAM-SHA-256-PLUS"
)

var (
	// ErrScramFailed: the client does not know the password. Nothing else is
	// wrong with it: it is told 28P01.
	ErrScramFailed = errors.New("wrong password")
	// ErrKeyChanged: the verifier is not that of the key, because the password
	// was set anew in between, be it to the same. The key is of no more use: only
	// the client can log in.
	ErrKeyChanged = errors.New("the password was changed since the key was recovered")
	// ErrWrongServer: the server let us in, but cannot know the verifier. It is
	// not whom it says to be; what it says must not be believed.
	ErrWrongServer = errors.New("the server does not know the role's verifier: it is another cluster, or an impostor")
)

const (
	// mockIterations is what scram_iterations is by default in PostgreSQL, and
	// mockSalt the length of its salts, in bytes.
	mockIterations = 4096
	mockSalt       = 16
	// nonceLen is SCRAM_RAW_NONCE_LEN of src/include/common/scram-common.h, in
	// bytes before base64.
	nonceLen = 18
)

// digest is what SHA-256 yields.
type digest = [sha256.Size]byte

// hidden keeps what it is embedded in out of logs and error texts.
type hidden struct{}

const hiddenText = "(hidden)"

func (hidden) String() string               { return hiddenText }
func (hidden) Format(f fmt.State, _ rune)   { io.WriteString(f, hiddenText) }
func (hidden) LogValue() slog.Value         { return slog.StringValue(hiddenText) }
func (hidden) MarshalText() ([]byte, error) { return []byte(hiddenText), nil }

// Key is a role's ClientKey: with it one logs in as with the password, until
// the password is changed. It is never printed. Copies share one memory, so that
// Wipe leaves none. The zero Key is none, and fits no verifier.
type Key struct {
	hidden
	secret *digest
}

// Wipe forgets the key, in all its copies. It must not run while the key is used.
func (k Key) Wipe() {
	if k.secret != nil {
		clear(k.secret[:])
	}
}

// Verifier is what PostgreSQL keeps of a role's password: enough to check a
// login, not to log in. It is never printed either: a password can be guessed
// from it. Copies share one memory, which is never written. The zero Verifier is
// none, and not to be used.
type Verifier struct {
	hidden
	*verifier
}

// verifier stands behind a pointer because fmt follows none inside of a struct.
type verifier struct {
	iterations           int
	salt                 []byte
	storedKey, serverKey digest
}

// ParseVerifier reads pg_authid.rolpassword. Its errors say nothing of the text.
func ParseVerifier(text string) (Verifier, error) {
	scheme, rest, _ := strings.Cut(text, "$")
	if scheme != ScramPlain {
		return Verifier{}, errors.New("the role has no SCRAM-SHA-256 password: set it anew, with password_encryption = 'scram-sha-256'")
	}
	cost, keys, _ := strings.Cut(rest, "$")
	iterations, salt, _ := strings.Cut(cost, ":")
	stored, server, _ := strings.Cut(keys, ":")
	var v verifier
	var ok [4]bool
	v.iterations, ok[0] = parseIterations(iterations)
	v.salt, ok[1] = decode64(salt)
	v.storedKey, ok[2] = decodeDigest(stored)
	v.serverKey, ok[3] = decodeDigest(server)
	if ok != [4]bool{true, true, true, true} || len(v.salt) == 0 {
		return Verifier{}, errors.New("the role's SCRAM-SHA-256 verifier is damaged: set its password anew")
	}
	return Verifier{verifier: &v}, nil
}

// MockVerifier is for a role that there is not, or that may not log in: the
// exchange looks like any other and fails at its end, so that nobody can ask
// which roles there are. The salt follows from the role, and so is the same the
// next time; secret is to be the same as long as clients may compare.
func MockVerifier(secret []byte, role string) Verifier {
	salt := mac(secret, []byte(role))
	v := verifier{iterations: mockIterations, salt: salt[:mockSalt]}
	rand.Read(v.storedKey[:])
	rand.Read(v.serverKey[:])
	return Verifier{verifier: &v}
}

// fits says whether key belongs to v.
func (v *verifier) fits(key Key) bool {
	if key.secret == nil {
		return false
	}
	stored := sha256.Sum256(key.secret[:])
	return equal(stored[:], v.storedKey[:])
}

// keyOf returns the ClientKey that made proof, if it is v's.
func (v *verifier) keyOf(proof digest, authMessage string) (Key, error) {
	signature := mac(v.storedKey[:], []byte(authMessage))
	key := Key{secret: new(digest)}
	subtle.XORBytes(key.secret[:], proof[:], signature[:])
	if !v.fits(key) {
		key.Wipe()
		return Key{}, ErrScramFailed
	}
	return key, nil
}

// sign is how the server shows that it knows the verifier.
func (v *verifier) sign(authMessage string) digest {
	return mac(v.serverKey[:], []byte(authMessage))
}

// prove is how the client shows that it knows the key.
func (k Key) prove(authMessage string) digest {
	stored := sha256.Sum256(k.secret[:])
	proof := mac(stored[:], []byte(authMessage))
	subtle.XORBytes(proof[:], proof[:], k.secret[:])
	return proof
}

// RecoverKey finds the ClientKey of an exchange between others that was relayed,
// from the SASL data of its first three messages. The error is ErrKeyChanged
// when v has another salt than the server had, ErrScramFailed when the proof was
// wrong, a *ProtocolError when it was none.
func RecoverKey(v Verifier, clientFirst, serverFirst, clientFinal []byte) (Key, error) {
	first, err := parseClientFirst(clientFirst)
	if err != nil {
		return Key{}, err
	}
	challenge, err := parseServerFirst(serverFirst)
	if err != nil {
		return Key{}, err
	}
	if !challenge.asks(v) {
		return Key{}, ErrKeyChanged
	}
	final, err := parseClientFinal(clientFinal)
	if err != nil {
		return Key{}, err
	}
	return v.keyOf(final.proof, authMessage(first.bare, string(serverFirst), final.withoutProof))
}

// authMessage is what both sides sign.
func authMessage(clientFirstBare, serverFirst, clientFinalWithoutProof string) string {
	return clientFirstBare + "," + serverFirst + "," + clientFinalWithoutProof
}

func mac(key, message []byte) (d digest) {
	h := hmac.New(sha256.New, key)
	h.Write(message)
	h.Sum(d[:0])
	return d
}

func newNonce() string {
	var raw [nonceLen]byte
	rand.Read(raw[:])
	return encode64(raw[:])
}

func equal(a, b []byte) bool { return subtle.ConstantTimeCompare(a, b) == 1 }

func encode64(raw []byte) string { return base64.StdEncoding.EncodeToString(raw) }

func decode64(text string) ([]byte, bool) {
	if strings.ContainsAny(text, "\r\n") {
		return nil, false // which base64 would pass over
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(text)
	return raw, err == nil
}

func decodeDigest(text string) (d digest, ok bool) {
	raw, ok := decode64(text)
	if !ok || len(raw) != len(d) {
		return d, false
	}
	return digest(raw), true
}

func parseIterations(text string) (int, bool) {
	n, err := strconv.ParseUint(text, 10, 31)
	return int(n), err == nil && n > 0
}
