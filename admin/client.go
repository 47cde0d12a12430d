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

// maxStatus bounds what Fetch reads, in bytes; some thousand are usual.
const maxStatus = 4 << 20

// Fetch asks the proxy whose admin address is addr, host:port, for its Status.
// An address to listen on, such as :8008, means this machine.
func Fetch(ctx context.Context, addr string) (Status, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return Status{}, fmt.Errorf("ask %q for the status: it is not an address: write host:port", addr)
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip == netip.IPv4Unspecified() {
		host = "127.0.0.1"
	} else if err == nil && ip.IsUnspecified() {
		host = "::1"
	}
	addr = net.JoinHostPort(host, port)
	status, err := fetch(ctx, addr)
	if err != nil {
		return Status{}, fmt.Errorf("ask %s for the status: %w", addr, err)
	}
	return status, nil
}

func fetch(ctx context.Context, addr string) (Status, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/status", nil)
	if err != nil {
		return Status{}, err
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
		return Status{}, fmt.Errorf("%w: is pgfailproxy running, and is this the address of its setting admin?", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return Status{}, fmt.Errorf("the answer is %s: is this the address of the setting admin?", resp.Status)
	}
	var status Status
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxStatus)).Decode(&status); err != nil {
		return Status{}, fmt.Errorf("the answer cannot be read: %w: is this a pgfailproxy of another version?", err)
	}
	return status, nil
}
