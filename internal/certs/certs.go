// Package certs keeps the certificate that the proxy shows its clients: checked
// at the start, and the newest from then on, because certificates are renewed
// while the proxy runs.
package certs

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// lookEvery is how often the files are looked at, at most: rarely enough to cost
// nothing, and soon enough that whoever replaced them sees it happen.
const lookEvery = time.Second

// Files names what is kept.
type Files struct {
	Cert string // certificate and its chain, PEM
	Key  string // its key, PEM; may be the same file
	CA   string // authorities that clients' certificates are checked against; empty: clients are not asked for one

	// MinVersion is the least version of TLS, as tls.VersionTLS12.
	MinVersion uint16
}

// Keeper holds the newest certificate that is whole. It may be used by several
// goroutines.
type Keeper struct {
	files Files
	log   *slog.Logger

	mu      sync.Mutex
	newest  *loaded
	seen    stamp     // the files as they were when they were last read, for better or worse
	looked  time.Time // when the files were last looked at
	looking bool      // somebody does
}

// loaded is immutable: what connections of one generation share, such as the
// keys of session tickets.
type loaded struct {
	config *tls.Config
	leaf   *x509.Certificate
}

// Load reads the files. An error names the setting of the file that is wrong.
func Load(files Files, log *slog.Logger) (*Keeper, error) {
	k := &Keeper{files: files, log: log, seen: look(files), looked: time.Now()}
	l, err := read(files)
	if err != nil {
		return nil, err
	}
	k.newest = l
	return k, nil
}

// ForConnection returns what one handshake needs: the configuration, which must
// not be changed, and the leaf that the client will be shown, which is what its
// channel binding is computed from.
//
// The files are looked at here, at most once a second. New ones that are broken,
// or replaced only in part yet, are reported once; the old ones stay.
func (k *Keeper) ForConnection() (*tls.Config, *x509.Certificate) {
	if k.due() {
		k.look()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.newest.config, k.newest.leaf
}

// due reports whether the caller has to look at the files. Others go on with
// what there is meanwhile.
func (k *Keeper) due() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.looking || time.Since(k.looked) < lookEvery {
		return false
	}
	k.looking = true
	return true
}

func (k *Keeper) look() {
	now := look(k.files)
	k.mu.Lock()
	changed := now != k.seen
	k.mu.Unlock()
	if changed {
		k.reload(now)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.looking, k.looked = false, time.Now()
}

// Reload reads the files now, whether they changed or not. On an error, which
// is logged too, the old ones stay.
func (k *Keeper) Reload() error { return k.reload(look(k.files)) }

// reload reads the files, of which now was seen before: if they change while
// they are read, the next look sees that.
func (k *Keeper) reload(now stamp) error {
	l, err := read(k.files)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.seen = now
	if err != nil {
		k.log.Warn("the new TLS files for clients cannot be used, the old ones stay", "cause", err, "expires", k.newest.leaf.NotAfter)
		return err
	}
	k.newest = l
	k.log.Info("TLS files for clients read again", "subject", l.leaf.Subject.String(), "expires", l.leaf.NotAfter)
	for _, w := range k.warnings(time.Now()) {
		k.log.Warn(w)
	}
	return nil
}

// Warnings returns sentences about what is allowed but will not do, usually
// none.
func (k *Keeper) Warnings() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.warnings(time.Now())
}

// soon is how long before its end a certificate is warned of: most are renewed
// a third of their life before, and the shortest live for some days.
const soon = 48 * time.Hour

func (k *Keeper) warnings(now time.Time) []string {
	leaf, day := k.newest.leaf, func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }
	switch {
	case now.After(leaf.NotAfter):
		return []string{fmt.Sprintf("client_tls_cert %s expired on %s: clients that verify it refuse to connect: renew it", k.files.Cert, day(leaf.NotAfter))}
	case now.Add(soon).After(leaf.NotAfter):
		return []string{fmt.Sprintf("client_tls_cert %s expires on %s: renew it", k.files.Cert, day(leaf.NotAfter))}
	case now.Before(leaf.NotBefore):
		return []string{fmt.Sprintf("client_tls_cert %s is valid from %s only: clients that verify it refuse to connect: mend the clock, or the certificate", k.files.Cert, day(leaf.NotBefore))}
	}
	return nil
}
