package pgwire

import (
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
)

// The example of RFC 7677, section 3. Its role is user, its password pencil.
const (
	rfcClientNonce = "rOprNGfwEbeRWgbNEkqO"
	rfcServerNonce = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
	rfcSalt        = "W22ZaJ0SNY7soEsUEjb6gQ=="
	rfcClientFirst = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
	rfcServerFirst = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
	rfcClientFinal = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
	rfcServerFinal = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
)

// verifierText is what PostgreSQL would keep of password.
func verifierText(password, salt64 string, iterations int) string {
	salt, _ := decode64(salt64)
	client, server := keysOf(password, salt, iterations)
	stored := sha256.Sum256(client[:])
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, salt64, encode64(stored[:]), encode64(server[:]))
}

func keysOf(password string, salt []byte, iterations int) (client, server digest) {
	salted, err := pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
	if err != nil {
		panic(err) // of a length that is a constant here
	}
	return mac(salted, []byte("Client Key")), mac(salted, []byte("Server Key"))
}

func mustParse(text string) Verifier {
	v, err := ParseVerifier(text)
	if err != nil {
		panic(err)
	}
	return v
}

func verifierOf(password string) Verifier { return mustParse(verifierText(password, rfcSalt, 4096)) }

// keyOf is the key of the password that v was made of.
func keyOf(password string, v Verifier) Key {
	client, _ := keysOf(password, v.salt, v.iterations)
	return Key{secret: &client}
}

// pencil are the verifier and the key of the RFC's role. They take some
// milliseconds to make, and some tests want them a thousand times.
var pencil = sync.OnceValues(func() (Verifier, Key) {
	v := verifierOf("pencil")
	return v, keyOf("pencil", v)
})

// rfcServer is a server that has the nonce of the RFC's.
func rfcServer(endpoint []byte) *ScramServer {
	v, _ := pencil()
	s := NewScramServer(v, endpoint)
	s.nonce = rfcServerNonce
	return s
}

// rfcClient is likewise.
func rfcClient(t testing.TB) *ScramClient {
	t.Helper()
	v, key := pencil()
	c := NewScramClient(key, v, nil)
	c.nonce = rfcClientNonce
	if _, _, err := c.First([]string{ScramPlain}); err != nil {
		t.Fatal(err)
	}
	c.bare = strings.TrimPrefix(rfcClientFirst, "n,,") // which has a name
	return c
}

func TestTheServerSaysWhatTheRFCSays(t *testing.T) {
	s := rfcServer(nil)
	reply, err := s.First(ScramPlain, []byte(rfcClientFirst))
	if err != nil || string(reply) != rfcServerFirst {
		t.Fatalf("first: %q, %v", reply, err)
	}
	reply, key, err := s.Final([]byte(rfcClientFinal))
	if err != nil || string(reply) != rfcServerFinal {
		t.Fatalf("final: %q, %v", reply, err)
	}
	if want := keyOf("pencil", s.verifier); *key.secret != *want.secret {
		t.Error("the recovered key is not that of the password")
	}
}

func TestTheClientSaysWhatTheRFCSaysWithoutThePassword(t *testing.T) {
	c := rfcClient(t)
	final, err := c.Final([]byte(rfcServerFirst))
	if err != nil || string(final) != rfcClientFinal {
		t.Fatalf("%q, %v", final, err)
	}
	if err := c.Verify([]byte(rfcServerFinal)); err != nil {
		t.Fatal(err)
	}
}

func TestTheKeyOfARelayedExchangeIsRecovered(t *testing.T) {
	v := verifierOf("pencil")
	key, err := RecoverKey(v, []byte(rfcClientFirst), []byte(rfcServerFirst), []byte(rfcClientFinal))
	if err != nil || *key.secret != *keyOf("pencil", v).secret {
		t.Fatalf("the key of the password was not recovered: %v", err)
	}
	_, err = RecoverKey(verifierOf("pen"), []byte(rfcClientFirst), []byte(rfcServerFirst), []byte(rfcClientFinal))
	if !errors.Is(err, ErrScramFailed) {
		t.Errorf("with the verifier of another password: %v", err)
	}
	later := mustParse(verifierText("pencil", rfcSalt, 4097))
	_, err = RecoverKey(later, []byte(rfcClientFirst), []byte(rfcServerFirst), []byte(rfcClientFinal))
	if !errors.Is(err, ErrKeyChanged) {
		t.Errorf("with a verifier that was made since: %v", err)
	}
}

// exchange lets client and server talk to the end; both must be as they were made.
func exchange(c *ScramClient, s *ScramServer) (mechanism string, key Key, err error) {
	mechanism, data, err := c.First(s.Mechanisms())
	if err != nil {
		return mechanism, Key{}, err
	}
	if data, err = s.First(mechanism, data); err != nil {
		return mechanism, Key{}, err
	}
	if data, err = c.Final(data); err != nil {
		return mechanism, Key{}, err
	}
	if data, key, err = s.Final(data); err != nil {
		return mechanism, Key{}, err
	}
	return mechanism, key, c.Verify(data)
}

func TestOurClientAndOurServerUnderstandEachOther(t *testing.T) {
	v := verifierOf("pencil")
	key := keyOf("pencil", v)
	us, other := []byte("our certificate"), []byte("another certificate")
	for _, c := range []struct {
		name           string
		server, client []byte
		mechanism      string
		code           string
	}{
		{"without TLS", nil, nil, ScramPlain, ""},
		{"with TLS", us, us, ScramPlus, ""},
		{"a client that does no binding", us, nil, ScramPlain, ""},
		{"a server that does none", nil, us, ScramPlain, ""},
		{"somebody in the middle", us, other, ScramPlus, "28000"},
	} {
		mechanism, got, err := exchange(NewScramClient(key, v, c.client), NewScramServer(v, c.server))
		if mechanism != c.mechanism || codeOf(err) != c.code {
			t.Errorf("%s: %s, %v", c.name, mechanism, err)
		}
		if c.code == "" && (err != nil || *got.secret != *key.secret) {
			t.Errorf("%s: key was not recovered: %v", c.name, err)
		}
	}
}

func TestAClientNoticesThatItsOfferWasCutShort(t *testing.T) {
	v := verifierOf("pencil")
	c, s := NewScramClient(keyOf("pencil", v), v, []byte("cert")), NewScramServer(v, []byte("cert"))
	mechanism, data, err := c.First([]string{ScramPlain}) // somebody took the other away
	if err != nil {
		t.Fatal(err)
	}
	if _, err = s.First(mechanism, data); codeOf(err) != "28000" || err.Error() != "SCRAM channel binding negotiation error" {
		t.Errorf("%v", err)
	}
}

func TestAnUnknownRoleLooksLikeAnyOther(t *testing.T) {
	secret := []byte("of this proxy")
	mock := MockVerifier(secret, "nobody")
	if again := MockVerifier(secret, "nobody"); !slices.Equal(mock.salt, again.salt) {
		t.Error("the salt is not the same the next time")
	}
	for _, other := range []Verifier{MockVerifier(secret, "somebody"), MockVerifier([]byte("of another"), "nobody")} {
		if slices.Equal(mock.salt, other.salt) {
			t.Error("another role or another proxy has the same salt")
		}
	}
	shape := func(v Verifier) (int, error) {
		s := NewScramServer(v, nil)
		reply, err := s.First(ScramPlain, []byte(rfcClientFirst))
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = s.Final([]byte(strings.Replace(rfcClientFinal, rfcServerNonce, s.nonce, 1)))
		return len(reply), err
	}
	// A real role with a wrong password is what it must look like.
	real, realErr := shape(verifierOf("another"))
	fake, fakeErr := shape(mock)
	if real != fake || !errors.Is(realErr, ErrScramFailed) || !errors.Is(fakeErr, ErrScramFailed) {
		t.Errorf("real: %d bytes, %v; mock: %d bytes, %v", real, realErr, fake, fakeErr)
	}
}

func TestAChallengeIsGoodForOneProof(t *testing.T) {
	s := rfcServer(nil)
	for range 2 { // before First, and again
		if _, _, err := s.Final([]byte(rfcClientFinal)); codeOf(err) != "08P01" {
			t.Errorf("%v", err)
		}
	}
	if _, err := s.First(ScramPlain, []byte(rfcClientFirst)); err != nil {
		t.Fatal(err)
	}
	wrong := strings.Replace(rfcClientFinal, "p=dHzb", "p=dHza", 1)
	if _, _, err := s.Final([]byte(wrong)); !errors.Is(err, ErrScramFailed) {
		t.Errorf("a wrong proof: %v", err)
	}
	if _, _, err := s.Final([]byte(rfcClientFinal)); codeOf(err) != "08P01" {
		t.Errorf("a second proof: %v", err)
	}
}

func TestAKeyIsOfNoUseAfterThePasswordWasSetAnew(t *testing.T) {
	old := verifierOf("pencil")
	key := keyOf("pencil", old)
	const otherSalt = "AAAAAAAAAAAAAAAAAAAAAA=="
	for name, text := range map[string]string{
		"same password, other salt":  verifierText("pencil", otherSalt, 4096),
		"same password, other count": verifierText("pencil", rfcSalt, 8192),
		"other password, other salt": verifierText("pen", otherSalt, 4096),
	} {
		v := mustParse(text)
		if _, _, err := exchange(NewScramClient(key, old, nil), NewScramServer(v, nil)); !errors.Is(err, ErrKeyChanged) {
			t.Errorf("%s: %v", name, err)
		}
		if _, _, err := NewScramClient(key, v, nil).First([]string{ScramPlain}); !errors.Is(err, ErrKeyChanged) {
			t.Errorf("%s, and the new verifier: %v", name, err)
		}
	}
}

func TestAServerThatLetsEverybodyInIsNotBelieved(t *testing.T) {
	for _, said := range []string{
		"v=" + encode64(make([]byte, 32)),
		"v=" + strings.Repeat("A", 44),
		"v=", "v", "", "e=other-error", rfcServerFinal + ",x=y", "r=" + rfcServerFinal[2:],
	} {
		c := rfcClient(t)
		if _, err := c.Final([]byte(rfcServerFirst)); err != nil {
			t.Fatal(err)
		}
		if err := c.Verify([]byte(said)); err == nil {
			t.Errorf("%q was believed", said)
		}
	}
	if err := rfcClient(t).Verify([]byte(rfcServerFinal)); err == nil {
		t.Error("it was believed before there was a proof")
	}
}

func TestAWipedKeyIsGoneFromAllItsCopies(t *testing.T) {
	v := verifierOf("pencil")
	key := keyOf("pencil", v)
	kept := key
	key.Wipe()
	if *kept.secret != (digest{}) {
		t.Error("a copy still has it")
	}
	if _, _, err := NewScramClient(kept, v, nil).First([]string{ScramPlain}); err == nil {
		t.Error("it still logs in")
	}
	Key{}.Wipe() // none is fine
	if _, _, err := NewScramClient(Key{}, v, nil).First([]string{ScramPlain}); err == nil {
		t.Error("no key logs in")
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	v := verifierOf("pencil")
	key := keyOf("pencil", v)
	type session struct {
		Key      Key
		Verifier Verifier
		key      Key
		verifier Verifier
		server   *ScramServer
		client   ScramClient
	}
	all := session{key, v, key, v, NewScramServer(v, nil), *NewScramClient(key, v, nil)}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%q", "%d"} {
		fmt.Fprintf(&out, verb+" "+verb+" "+verb+" "+verb+"\n", key, &key, v, &v)
	}
	out.WriteString(key.String() + v.String())
	text, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(text)
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "key", key, "verifier", v)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "key", key, "verifier", v, "all", all)
	// Inside of others, unexported, fmt asks nobody: they are hidden even there.
	for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%d"} {
		fmt.Fprintf(&out, verb, struct{ key Key }{key})
		fmt.Fprintf(&out, verb, all)
	}
	for name, secret := range map[string][]byte{"key": key.secret[:], "stored key": v.storedKey[:], "server key": v.serverKey[:]} {
		for _, form := range []string{"%s", "%x", "%X", "%v", "%#v", "%q"} {
			said := fmt.Sprintf(form, secret[:8])
			if strings.Contains(out.String(), strings.Trim(said, "[]\"}")) {
				t.Errorf("the %s was printed with %s", name, form)
			}
		}
		if strings.Contains(out.String(), encode64(secret)[:8]) {
			t.Errorf("the %s was printed in base64", name)
		}
	}
}

func TestWhatIsNoVerifierIsToldSoWithoutItsText(t *testing.T) {
	good := verifierText("pencil", rfcSalt, 4096)
	if _, err := ParseVerifier(good); err != nil {
		t.Fatal(err)
	}
	key := strings.Split(good, ":")[2]
	for name, text := range map[string]string{
		"nothing":         "",
		"md5":             "md55a231fcdb710d73268c4f44283487ba2",
		"the password":    "pencil",
		"the scheme":      ScramPlain,
		"another scheme":  strings.Replace(good, "256", "512", 1),
		"no count":        strings.Replace(good, "4096", "", 1),
		"count of zero":   strings.Replace(good, "4096", "0", 1),
		"negative count":  strings.Replace(good, "4096", "-1", 1),
		"a count too big": strings.Replace(good, "4096", "2147483648", 1),
		"no salt":         strings.Replace(good, rfcSalt, "", 1),
		"no base64":       strings.Replace(good, rfcSalt, "!", 1),
		"short key":       strings.Replace(good, key, "AAAA", 1),
		"no key":          strings.Replace(good, key, "", 1),
		"line break":      good + "\n",
		"more":            good + "$x",
		"half":            good[:len(good)/2],
	} {
		_, err := ParseVerifier(text)
		if err == nil || len(text) > len(ScramPlain) && strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// codeOf is the SQLSTATE of a protocol error; empty for others.
func codeOf(err error) string {
	var p *ProtocolError
	if !errors.As(err, &p) {
		return ""
	}
	return p.Code
}
