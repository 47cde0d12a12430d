package admin

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"
)

// Session is one client of the proxy. What it asks the server is not shown.
// Programs read its JSON, as that of Status.
type Session struct {
	ID          uint64 `json:"id"`
	Client      string `json:"client"` // address
	User        string `json:"user"`
	Database    string `json:"database"`
	Application string `json:"application_name"`
	TLS         bool   `json:"tls"` // between the client and the proxy
	// State is the word for where it stands, such as "in transaction".
	State      string    `json:"state"`
	Since      time.Time `json:"since"` // State holds
	Began      time.Time `json:"began"`
	Member     string    `json:"member"` // whose session it is; empty while it has none
	FromClient int64     `json:"bytes_from_client"`
	FromServer int64     `json:"bytes_from_server"`
}

// sessions writes the list. It may be long: it is made when it is asked for.
func (s *Server) sessions(w http.ResponseWriter, _ *http.Request) {
	all := s.opts.Sessions()
	if all == nil {
		all = []Session{}
	}
	s.writeJSON(w, "sessions", all)
}

// WriteSessions writes a table for people. now is what times are told from.
func WriteSessions(w io.Writer, all []Session, now time.Time) error {
	var b strings.Builder
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "ID\tUSER\tDATABASE\tCLIENT\tAPPLICATION\tTLS\tSTATE\tSINCE\tFROM CLIENT\tFROM SERVER\tSERVER")
	for _, s := range all {
		encrypted := "no"
		if s.TLS {
			encrypted = "yes"
		}
		fmt.Fprintln(tw, strings.Join([]string{fmt.Sprint(s.ID), dash(s.User), dash(s.Database), dash(s.Client), dash(s.Application), encrypted,
			dash(s.State), age(now.Sub(s.Since)), bytesText(uint64(s.FromClient)), bytesText(uint64(s.FromServer)), dash(s.Member)}, "\t"))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := io.WriteString(w, trimLines(b.String()))
	return err
}
