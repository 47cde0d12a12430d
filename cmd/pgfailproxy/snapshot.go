package main

import (
	"pgfailproxy/admin"
	"pgfailproxy/cluster"
	"pgfailproxy/failover"
)

// status joins the snapshots of those who know.
func (i *instance) status() admin.Status {
	s := i.controller.Status()
	n := i.server.Stats()
	out := admin.Status{
		Version: version, State: string(s.State), Reason: s.Reason, Since: s.Since,
		Epoch: s.Record.Epoch, System: s.Record.System, Timeline: s.Record.Timeline, Primary: s.Record.Primary,
		Held: s.Record.Held, Candidate: s.Record.Candidate, Address: s.Addr.Address,
		Sessions: admin.Sessions{Open: n.Open, Held: n.Held, Total: n.Total, Refused: n.Refused},
		Detection: admin.Detection{
			CrashSeconds: i.config.DetectCrash().Seconds(), HangSeconds: i.config.DetectHang().Seconds(),
		},
	}
	seen := s.Record.Seen
	for _, m := range s.Members {
		if m.Name == s.Record.Primary && m.Good.Serves(s.Record) && m.Good.Position.LSN > seen.LSN {
			seen = m.Good.Position
		}
	}
	for _, m := range s.Members {
		out.Members = append(out.Members, memberStatus(m, seen))
	}
	for _, r := range s.Reports {
		out.Failovers = append(out.Failovers, report(r))
	}
	return out
}

// sessions lists the sessions.
func (i *instance) sessions() []admin.Session {
	var out []admin.Session
	for _, s := range i.server.Sessions() {
		out = append(out, admin.Session{
			ID: s.ID, Client: s.Client, User: s.User, Database: s.Database, Application: s.Application, TLS: s.TLS,
			State: s.State.String(), Since: s.Since, Began: s.Began, Member: s.Member, FromClient: s.FromClient, FromServer: s.FromServer,
		})
	}
	return out
}

// memberStatus shows one member; seen is the last position of the primary.
func memberStatus(m failover.MemberStatus, seen cluster.Position) admin.Member {
	good := m.Good
	out := admin.Member{
		Name: m.Name, Role: m.Last.Role.String(), Reach: m.Last.Reach.String(), Error: m.Last.Err, Address: good.Addr.Address,
		System: good.System, Timeline: good.Position.Timeline, LSN: good.Position.LSN, Replayed: good.Replayed,
		Streaming: m.Last.Streaming, Misses: m.Misses, LastAnswer: good.Asked, ProbeSeconds: good.Took.Seconds(),
		ServerVersion: good.ServerVersion,
	}
	if good.Role == cluster.RoleStandby && seen.LSN != 0 && good.Position.LSN != 0 {
		lag := good.Position.LSN.Behind(seen.LSN)
		out.LagBytes = &lag
	}
	return out
}

func report(r failover.Report) admin.Failover {
	out := admin.Failover{
		Epoch: r.Epoch, From: r.From, To: r.To, Cause: r.Cause, Started: r.Started, Seconds: r.Took().Seconds(),
		LastSeen: r.Seen, LastSeenAt: r.SeenAt, PromotedAt: r.Promoted, BytesAtRisk: r.BytesAtRisk, Verdict: string(r.Verdict),
	}
	for _, p := range r.Phases {
		out.Phases = append(out.Phases, admin.Phase{Name: p.Name, Seconds: p.Took.Seconds()})
	}
	return out
}
