package verifier

import "strings"

// Statements returns the SQL that makes the function, or makes it anew, and lets
// role call it: for one transaction of a superuser, in the database that the
// proxy's role connects to, on the primary. They may be run again and again.
//
// Unless superusers is set the function says nothing of superusers and of roles
// for replication: whoever gets hold of the proxy's password then cannot try to
// guess theirs, and nobody can log in as them through a proxy that checks
// passwords itself.
//
// What makes it safe to call for everybody, with whatever search_path: every name
// and operator in it is qualified, its owner is the superuser, and nobody else
// may put anything into its schema.
func Statements(role string, superusers bool) []string {
	trusted := "\n      AND NOT a.rolsuper AND NOT a.rolreplication"
	if superusers {
		trusted = ""
	}
	grantee := Quote(role)
	return []string{
		checkOwner,
		`CREATE SCHEMA IF NOT EXISTS pgfailproxy`,
		`REVOKE ALL ON SCHEMA pgfailproxy FROM PUBLIC`,
		strings.Replace(createFunction, "{trusted}", trusted, 1),
		`ALTER FUNCTION pgfailproxy.verifier(pg_catalog.text) OWNER TO CURRENT_USER`,
		`REVOKE ALL ON FUNCTION pgfailproxy.verifier(pg_catalog.text) FROM PUBLIC`,
		`GRANT USAGE ON SCHEMA pgfailproxy TO ` + grantee,
		`GRANT EXECUTE ON FUNCTION pgfailproxy.verifier(pg_catalog.text) TO ` + grantee,
	}
}

// checkOwner refuses a schema that somebody made before us who could then
// exchange the function.
const checkOwner = `DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) n.nspowner
      WHERE n.nspname OPERATOR(pg_catalog.=) 'pgfailproxy' AND NOT r.rolsuper) THEN
    RAISE EXCEPTION 'the schema pgfailproxy belongs to a role that is no superuser'
      USING HINT = 'Look what is in it and rename or drop it, or: ALTER SCHEMA pgfailproxy OWNER TO CURRENT_USER.';
  END IF;
END
$$`

// createFunction takes text and not name: a name is cut after 63 bytes, and two
// roles that differ only after that must not be taken for one. A password that
// is stored as md5 is not shown, because that hash is as good as the password.
// Whether a role may log in has to be asked here, because the server is not
// asked before the client was told that its password is right.
const createFunction = `CREATE OR REPLACE FUNCTION pgfailproxy.verifier(role pg_catalog.text) RETURNS pg_catalog.text
  LANGUAGE sql STABLE STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
  SELECT CASE WHEN pg_catalog.starts_with(a.rolpassword, 'SCRAM-SHA-256$') THEN a.rolpassword
      WHEN a.rolpassword IS NOT NULL THEN 'not stored as scram-sha-256' END
    FROM pg_catalog.pg_authid a
    WHERE a.rolname OPERATOR(pg_catalog.=) role
      AND a.rolcanlogin{trusted}
      AND (a.rolvaliduntil IS NULL OR a.rolvaliduntil OPERATOR(pg_catalog.>) pg_catalog.now())
$$`

// Quote writes a role's name as an identifier of SQL.
func Quote(role string) string {
	return `"` + strings.ReplaceAll(role, `"`, `""`) + `"`
}
