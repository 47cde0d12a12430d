package pgwire

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestTheServerKeepsPostgreSQLsRules(t *testing.T) {
	const (
		noBinding = "n,,n=,r=abc"
		bound     = "p=tls-server-end-point,,n=,r=abc"
	)
	tls := []byte("hash of our certificate")
	for _, c := range []struct {
		name, mechanism, data string
		endpoint              []byte
		code, message         string // empty: it is taken
	}{
		{"libpq without TLS", ScramPlain, noBinding, nil, "", ""},
		{"libpq with TLS that we do not bind to", ScramPlain, "y,,n=,r=abc", nil, "", ""},
		{"libpq with channel_binding=disable", ScramPlain, noBinding, tls, "", ""},
		{"libpq with TLS", ScramPlus, bound, tls, "", ""},
		{"a name and extensions", ScramPlain, "n,,n=some=2Cbody,r=abc,x=1,y=", nil, "", ""},
		{"a comma at the end", ScramPlain, noBinding + ",", nil, "", ""},
		{"the offer was cut short", ScramPlain, "y,,n=,r=abc", tls, "28000", "SCRAM channel binding negotiation error"},
		{"binding that was not selected", ScramPlain, bound, tls, "08P01", "channel binding"},
		{"selected, and not bound", ScramPlus, noBinding, tls, "08P01", "channel binding"},
		{"selected, and 'y'", ScramPlus, "y,,n=,r=abc", tls, "08P01", "channel binding"},
		{"bound without TLS", ScramPlus, bound, nil, "08P01", "invalid SASL authentication mechanism"},
		{"another mechanism", "PLAIN", noBinding, nil, "08P01", "invalid SASL authentication mechanism"},
		{"no mechanism", "", noBinding, nil, "08P01", "invalid SASL authentication mechanism"},
		{"another kind of binding", ScramPlus, "p=tls-unique,,n=,r=abc", tls, "08P01", "channel-binding type"},
		{"no kind of binding", ScramPlus, "p=,,n=,r=abc", tls, "08P01", "channel-binding type"},
		{"an unknown flag", ScramPlain, "x,,n=,r=abc", nil, "08P01", "channel-binding flag"},
		{"no flag", ScramPlain, ",,n=,r=abc", nil, "08P01", "channel-binding flag"},
		{"to act for another", ScramPlain, "n,a=postgres,n=,r=abc", nil, "0A000", "authorization identity"},
		{"something in its place", ScramPlain, "n,x,n=,r=abc", nil, "08P01", "unexpected attribute"},
		{"an extension that must be understood", ScramPlain, "n,,m=x,n=,r=abc", nil, "0A000", "extension"},
		{"no name", ScramPlain, "n,,r=abc", nil, "08P01", "'n' expected"},
		{"no nonce", ScramPlain, "n,,n=", nil, "08P01", "it ends"},
		{"an empty nonce", ScramPlain, "n,,n=,r=", nil, "08P01", "nonce"},
		{"a nonce with a space", ScramPlain, "n,,n=,r=a b", nil, "08P01", "nonce"},
		{"a nonce beyond ASCII", ScramPlain, "n,,n=,r=\xff", nil, "08P01", "nonce"},
		{"garbage for an extension", ScramPlain, "n,,n=,r=abc,1", nil, "08P01", "attribute expected"},
		{"a zero byte", ScramPlain, "n,,n=,r=abc\x00", nil, "08P01", "zero byte"},
		{"nothing", ScramPlain, "", nil, "08P01", "empty"},
		{"the most", ScramPlain, noBinding + strings.Repeat("x", maxSASL-len(noBinding)), nil, "", ""},
		{"too much", ScramPlain, noBinding + strings.Repeat("x", maxSASL-len(noBinding)+1), nil, "08P01", "too long"},
	} {
		_, err := rfcServer(c.endpoint).First(c.mechanism, []byte(c.data))
		if codeOf(err) != c.code || (err == nil) != (c.code == "") || err != nil && !strings.Contains(err.Error(), c.message) {
			t.Errorf("%s: %v, want %s %s", c.name, err, c.code, c.message)
		}
	}
}

func TestTheLastMessageMustBelongToTheFirst(t *testing.T) {
	tls := []byte("hash of our certificate")
	nonce := "r=abc" + rfcServerNonce
	bound := "c=" + encode64(append([]byte("p=tls-server-end-point,,"), tls...))
	proof := "p=" + encode64(make([]byte, 32))
	const wrong = "a proof" // all is well but that
	for _, c := range []struct {
		name, flag string
		parts      []string
		want       string
	}{
		{"as it should be", "n", []string{"c=biws", nonce, proof}, wrong},
		{"with extensions", "n", []string{"c=biws", nonce, "x=1", "y=", proof}, wrong},
		{"with 'y'", "y", []string{"c=eSws", nonce, proof}, wrong},
		{"bound", "p", []string{bound, nonce, proof}, wrong},
		{"'y' that was 'n'", "n", []string{"c=eSws", nonce, proof}, "08P01"},
		{"'n' that was 'y'", "y", []string{"c=biws", nonce, proof}, "08P01"},
		{"bound, which it was not", "n", []string{bound, nonce, proof}, "08P01"},
		{"not bound, which it was", "p", []string{"c=biws", nonce, proof}, "28000"},
		{"bound to another", "p", []string{"c=" + encode64([]byte("p=tls-server-end-point,,other")), nonce, proof}, "28000"},
		{"bound to nothing", "p", []string{"c=" + encode64([]byte("p=tls-server-end-point,,")), nonce, proof}, "28000"},
		{"no binding", "n", []string{nonce, proof}, "08P01"},
		{"another's nonce", "n", []string{"c=biws", "r=abd" + rfcServerNonce, proof}, "08P01"},
		{"its own nonce only", "n", []string{"c=biws", "r=abc", proof}, "08P01"},
		{"a longer nonce", "n", []string{"c=biws", nonce + "x", proof}, "08P01"},
		{"no proof", "n", []string{"c=biws", nonce}, "08P01"},
		{"an empty proof", "n", []string{"c=biws", nonce, "p="}, "08P01"},
		{"a short proof", "n", []string{"c=biws", nonce, "p=" + encode64(make([]byte, 31))}, "08P01"},
		{"a long proof", "n", []string{"c=biws", nonce, "p=" + encode64(make([]byte, 33))}, "08P01"},
		{"a proof with a line break", "n", []string{"c=biws", nonce, proof[:10] + "\n" + proof[10:]}, "08P01"},
		{"more behind the proof", "n", []string{"c=biws", nonce, proof, "x=1"}, "08P01"},
	} {
		var endpoint []byte
		mechanism, header := ScramPlain, c.flag
		if c.flag == "p" {
			endpoint, mechanism, header = tls, ScramPlus, "p=tls-server-end-point"
		}
		s := rfcServer(endpoint)
		if _, err := s.First(mechanism, []byte(header+",,n=,r=abc")); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		_, key, err := s.Final([]byte(strings.Join(c.parts, ",")))
		if got := codeOf(err); c.want == wrong && !errors.Is(err, ErrScramFailed) || c.want != wrong && got != c.want || key.secret != nil {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
	}
}

func TestTheClientAnswersOnlyAChallengeOfItsOwn(t *testing.T) {
	for name, challenge := range map[string]string{
		"nothing":               "",
		"another's nonce":       strings.Replace(rfcServerFirst, "r=rO", "r=xO", 1),
		"only its own nonce":    strings.Replace(rfcServerFirst, rfcServerNonce, "", 1),
		"no salt":               strings.Replace(rfcServerFirst, rfcSalt, "", 1),
		"a salt that is none":   strings.Replace(rfcServerFirst, rfcSalt, "!", 1),
		"no count":              strings.Replace(rfcServerFirst, ",i=4096", "", 1),
		"a count of zero":       strings.Replace(rfcServerFirst, "4096", "0", 1),
		"a count that is none":  strings.Replace(rfcServerFirst, "4096", "+4096", 1),
		"an extension it needs": "m=x," + rfcServerFirst,
		"more":                  rfcServerFirst + ",x=1",
	} {
		if reply, err := rfcClient(t).Final([]byte(challenge)); codeOf(err) != "08P01" || reply != nil {
			t.Errorf("%s: %q, %v", name, reply, err)
		}
	}
	if _, err := new(ScramClient).Final([]byte(rfcServerFirst)); err == nil {
		t.Error("it answered before it began")
	}
}

func TestTheClientSaysWhatItCannotDo(t *testing.T) {
	v, key := pencil()
	for _, offered := range [][]string{nil, {"OAUTHBEARER"}, {ScramPlus}, {"SCRAM-SHA-1"}} {
		if mechanism, _, err := NewScramClient(key, v, nil).First(offered); err == nil {
			t.Errorf("of %q it chose %q", offered, mechanism)
		}
	}
}

// bent are all beginnings of a message, and the message with each byte changed
// in each of some ways.
func bent(message string) [][]byte {
	var all [][]byte
	for i := range message {
		all = append(all, []byte(message[:i]))
		for _, b := range []byte{0, ',', '=', 'p', 0xff, message[i] ^ 1, message[i] ^ 0x20} {
			if b != message[i] {
				m := []byte(message)
				m[i] = b
				all = append(all, m)
			}
		}
	}
	return all
}

func TestABentMessageNeverLogsIn(t *testing.T) {
	for _, first := range bent(rfcClientFirst) {
		s := rfcServer(nil)
		if _, err := s.First(ScramPlain, first); err == nil {
			_, _, err = s.Final([]byte(rfcClientFinal))
			mustFail(t, first, err)
		} else {
			mustFail(t, first, err)
		}
	}
	for _, final := range bent(rfcClientFinal) {
		s := rfcServer(nil)
		if _, err := s.First(ScramPlain, []byte(rfcClientFirst)); err != nil {
			t.Fatal(err)
		}
		_, _, err := s.Final(final)
		mustFail(t, final, err)
		_, err = RecoverKey(s.verifier, []byte(rfcClientFirst), []byte(rfcServerFirst), final)
		mustFail(t, final, err)
	}
	for _, challenge := range bent(rfcServerFirst) {
		c := rfcClient(t)
		if reply, err := c.Final(challenge); err == nil && bytes.Equal(reply, []byte(rfcClientFinal)) {
			t.Errorf("%q was answered as if it were the right one", challenge)
		}
	}
	for _, last := range bent(rfcServerFinal) {
		c := rfcClient(t)
		if _, err := c.Final([]byte(rfcServerFirst)); err != nil {
			t.Fatal(err)
		}
		if err := c.Verify(last); err == nil {
			t.Errorf("%q was believed", last)
		}
	}
}

// mustFail wants one of the errors that a login can end with.
func mustFail(t *testing.T, data []byte, err error) {
	t.Helper()
	if codeOf(err) == "" && !errors.Is(err, ErrScramFailed) && !errors.Is(err, ErrKeyChanged) {
		t.Errorf("%q: %v", data, err)
	}
}

// FuzzScramServer lets a stranger say anything: it does not get in, and learns
// why in a way that can be told.
func FuzzScramServer(f *testing.F) {
	f.Add([]byte(rfcClientFirst), []byte(rfcClientFinal), false)
	f.Add([]byte("p=tls-server-end-point,,n=,r=abc"), []byte("c=biws,r=abc"+rfcServerNonce+",p="), true)
	f.Add([]byte("n,a=x,m=y"), []byte(",,,"), false)
	v, want := pencil()
	f.Fuzz(func(t *testing.T, first, final []byte, tls bool) {
		var endpoint []byte
		if tls {
			endpoint = []byte("hash")
		}
		for _, mechanism := range []string{ScramPlain, ScramPlus} {
			s := NewScramServer(v, endpoint)
			s.nonce = rfcServerNonce
			challenge, err := s.First(mechanism, first)
			if err != nil {
				mustFail(t, first, err)
			}
			_, key, err := s.Final(final)
			switch {
			case err != nil:
				mustFail(t, final, err)
			case *key.secret != *want.secret:
				t.Errorf("%q %q logged in with another key", first, final)
			}
			if key, err = RecoverKey(v, first, challenge, final); err != nil {
				mustFail(t, final, err)
			} else if *key.secret != *want.secret {
				t.Errorf("another key was recovered from %q %q", first, final)
			}
		}
	})
}

// FuzzScramClient lets a server say anything: it is believed only if it knows
// the verifier, and so said what the right one would have.
func FuzzScramClient(f *testing.F) {
	f.Add([]byte(rfcServerFirst), []byte(rfcServerFinal))
	f.Add([]byte("r=rOprNGfwEbeRWgbNEkqOx,s=AAAA,i=1"), []byte("e=other-error"))
	v, key := pencil()
	f.Fuzz(func(t *testing.T, challenge, last []byte) {
		c := NewScramClient(key, v, nil)
		c.nonce = rfcClientNonce
		if _, _, err := c.First([]string{ScramPlain}); err != nil {
			t.Fatal(err)
		}
		c.bare = strings.TrimPrefix(rfcClientFirst, "n,,")
		reply, err := c.Final(challenge)
		if err != nil {
			mustFail(t, challenge, err)
			if reply != nil {
				t.Errorf("%q was answered, and refused", challenge)
			}
		}
		if c.Verify(last) == nil && string(last) != rfcServerFinal && string(last) != rfcServerFinal+"," {
			want := v.sign(c.signed)
			if !strings.HasPrefix(string(last), "v="+encode64(want[:])) {
				t.Errorf("%q %q was believed", challenge, last)
			}
		}
	})
}

// FuzzParseVerifier wants of a text that is taken that all of it was understood.
func FuzzParseVerifier(f *testing.F) {
	f.Add(verifierText("pencil", rfcSalt, 4096))
	f.Add("SCRAM-SHA-256$1:AAAA$:")
	f.Fuzz(func(t *testing.T, text string) {
		v, err := ParseVerifier(text)
		if err != nil {
			return
		}
		again := "$" + encode64(v.storedKey[:]) + ":" + encode64(v.serverKey[:])
		if !strings.HasSuffix(text, ":"+encode64(v.salt)+again) || v.iterations < 1 {
			t.Errorf("%q was taken", text)
		}
	})
}
