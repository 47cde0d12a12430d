// Package promote carries out on PostgreSQL what a failover decided: it fences
// a standby, drains it, promotes it and verifies that it is a primary. It
// decides nothing.
//
// Every call is bounded by its context and may be repeated: it goes on where
// the last one stopped. What has merely not come about in time is ErrNotYet.
//
// The role that it connects as needs, on every member,
//
//	GRANT pg_monitor TO role;
//	GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer), pg_reload_conf(), pg_wal_replay_resume() TO role;
//	GRANT ALTER SYSTEM ON PARAMETER primary_conninfo TO role;
//
// and they must be there before a failover: nothing can be granted on a
// standby. One that is missing is a *PrivilegeError.
package promote
