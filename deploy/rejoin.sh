#!/bin/bash
# Makes a member a standby of the present primary again: deletes its data and
# clones the primary. For an old primary that came back after a failover.
#
#   deploy/rejoin.sh [--yes] pg1
#
# It refuses to touch the present primary, and does nothing while there is none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

yes=
[ "${1:-}" = --yes ] && yes=1 && shift
member=${1:-}
case $member in
pg1 | pg2) ;;
*)
  echo "usage: deploy/rejoin.sh [--yes] pg1|pg2" >&2
  exit 2
  ;;
esac

# primary prints the member that the proxy serves.
primary() {
  local status
  status=$(docker compose exec -T proxy pgfailproxy status --json </dev/null) || {
    echo "rejoin: the proxy serves no primary now: see docker compose logs proxy" >&2
    return 1
  }
  sed -n 's/^  "primary": "\(.*\)",\{0,1\}$/\1/p' <<<"$status"
}

# refuse ends the script if the member is the primary, or that is not known.
refuse() {
  from=$(primary)
  if [ -z "$from" ] || [ "$from" = "$member" ]; then
    echo "rejoin: refused: the primary is ${from:-unknown}" >&2
    exit 1
  fi
}

refuse
if [ -z "$yes" ]; then
  read -rp "rejoin: delete the data of $member and clone $from? [y/N] " answer || true
  if [ "$answer" != y ]; then
    echo "rejoin: nothing was done" >&2
    exit 1
  fi
fi
docker compose stop "$member"
refuse # once more: a server that is stopped cannot be promoted any more
docker compose run --rm -T --no-deps -e "CLONE_FROM=$from" "$member" clone </dev/null
docker compose up -d --no-deps --wait "$member"
echo "rejoin: $member is a standby of $from"
