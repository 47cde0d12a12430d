package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
)

// maxAnswer bounds what is read of an answer, in bytes: a status has some
// thousand, a list of sessions some hundred for each.
const maxAnswer = 256 << 20

// Fetch asks the proxy whose admin address is addr, host:port, for its Status.
// An address to listen on, such as :8008, means this machine.
func Fetch(ctx context.Context, addr string) (status Status, err error) {
	return status, ask(ctx, addr, "/status", &status)
}

// FetchSessions asks for the list of sessions, likewise.
func FetchSessions(ctx context.Context, addr string) (sessions []Session, err error) {
	return sessions, ask(ctx, addr, "/sessions", &sessions)
}

// ask reads the JSON at a path into answer.
func ask(ctx context.Context, addr, path string, answer any) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("ask %q for %s: it is not an address: write host:port", addr, path)
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip == netip.IPv4Unspecified() {
		host = "127.0.0.1"
	} else if err == nil && ip.IsUnspecified() {
		host = "::1"
	}
	addr = net.JoinHostPort(host, port)
	if err := fetch(ctx, "http://"+addr+path, answer); err != nil {
		return fmt.Errorf("ask %s for %s: %w", addr, path, err)
	}
	return nil
}

func fetch(ctx context.Context, address string, answer any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	// A transport of its own: no proxy from the environment stands between us,
	// no connection stays, and nobody sends us elsewhere.
	client := http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		var urlErr *url.Error
		if errors.As(err, &urlErr) {
			err = urlErr.Err // the address is in the line already
		}
		return fmt.Errorf("%w: is pgfailproxy running, and is this the address of its setting admin?", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the answer is %s: is this the address of the setting admin?", resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(answer); err != nil {
		return fmt.Errorf("the answer cannot be read: %w: is this a pgfailproxy of another version?", err)
	}
	return nil
}
