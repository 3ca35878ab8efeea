# Sourced by the other scripts here: where things are, and the few functions that more than one of them needs.
# shellcheck shell=bash disable=SC2034
DEVCLUSTER=${DEVCLUSTER:-/opt/lada-devcluster} # all state, all unpacked programs
DEVSUITE=${DEVSUITE:-$DEVCLUSTER/suite}        # the ordinary user's copy of the checkout
DEVUSER=${DEVUSER:-lada}                       # the ordinary user that jobs run as
DEVPORT=${DEVPORT:-27800}                      # first of the ports; another cluster beside this one takes another
ACCOUNTING=${ACCOUNTING:-slurmdbd}             # or none

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
home=$DEVCLUSTER/home # of a user that up.sh made
nodes=(n1 n2 n3 n4)
daemons=(munged mariadb slurmdbd slurmctld "${nodes[@]}") # in the order of their start
[ "$ACCOUNTING" = slurmdbd ] || daemons=(munged slurmctld "${nodes[@]}")
export SLURM_CONF=$DEVCLUSTER/etc/slurm.conf
export MYSQL_UNIX_PORT=$DEVCLUSTER/mariadb/mariadb.socket
export PATH=$DEVCLUSTER/apptainer/bin:$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { echo "devcluster: $*"; }
die() {
  echo "devcluster: $*" >&2
  exit 2
}

needs_root() { [ "$(id -u)" = 0 ] || die "needs root: run it as root or with sudo"; }

# A plain path: it is written into settings, and a socket's path may have 107 characters.
[[ $DEVCLUSTER =~ ^/[A-Za-z0-9._/-]{1,70}$ ]] || die "DEVCLUSTER=$DEVCLUSTER: an absolute path of at most 70 of A-Z a-z 0-9 . _ / -"
[[ $ACCOUNTING =~ ^(slurmdbd|none)$ ]] || die "ACCOUNTING=$ACCOUNTING: slurmdbd or none"
[[ $DEVPORT =~ ^[0-9]{4,5}$ ]] || die "DEVPORT=$DEVPORT: a port number"
[[ $DEVUSER =~ ^[a-z_][a-z0-9_-]*$ && $DEVUSER != root ]] || die "DEVUSER=$DEVUSER: the name of an ordinary user"

# render FILE: prints what stands in FILE.in, filled in. Lines for slurmdbd go where there is none.
render() {
  local slurmdbd='s|^@SLURMDBD@||'
  [ "$ACCOUNTING" = slurmdbd ] || slurmdbd='/^@SLURMDBD@/d'
  sed -e "$slurmdbd" -e "s|@DEVCLUSTER@|$DEVCLUSTER|g" -e "s|@HOST@|$(hostname -s)|g" \
    -e "s|@CTLD_PORT@|$((DEVPORT + 17))|" -e "s|@DBD_PORT@|$((DEVPORT + 19))|" \
    -e "s|@NODE_PORTS@|$((DEVPORT + 101))-$((DEVPORT + 104))|" "$here/$1.in"
}

# await SECONDS COMMAND…: until COMMAND succeeds; fails when it has not after SECONDS.
await() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.1
  done
}
