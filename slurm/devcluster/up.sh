#!/usr/bin/env bash
# A Slurm cluster on this machine, for trying the suite: make cluster-up [YES=1] [ACCOUNTING=none] [DEVCLUSTER=<folder>]
#
# Everything lies in one folder, $DEVCLUSTER. What else has to change on the machine is listed and asked for first.
# Running again starts what is missing.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/settings.sh"

packages=(slurm-wlm munge uidmap squashfs-tools squashfuse fuse-overlayfs fuse3 debootstrap patchelf rsync python3-venv
  ca-certificates)
[ "$ACCOUNTING" = none ] || packages+=(slurmdbd mariadb-server)

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
as_devuser() { setpriv --reuid="$DEVUSER" --regid="$(id -g "$DEVUSER")" --init-groups "$@"; }

missing=() changes=()
for package in "${packages[@]}"; do installed "$package" || missing+=("$package"); done
[ ${#missing[@]} = 0 ] || changes+=("Debian packages, their services switched off: ${missing[*]}")
id "$DEVUSER" >/dev/null 2>&1 || changes+=("a user $DEVUSER without a password, at home in $home")
grep -qs "^$DEVUSER:" /etc/subuid && grep -qs "^$DEVUSER:" /etc/subgid ||
  changes+=("a range of 65536 ids for $DEVUSER in /etc/subuid and /etc/subgid")
[ "$(stat -c %a /dev/fuse 2>/dev/null)" = 666 ] || changes+=("chmod 666 /dev/fuse (until the next boot)")

if [ ${#changes[@]} -gt 0 ] && [ "${YES:-}" != 1 ]; then
  echo "Besides the folder $DEVCLUSTER, cluster-up changes on this machine:"
  printf '  - %s\n' "${changes[@]}"
  [ -t 0 ] || die "nothing done: no terminal to ask at; YES=1 says yes"
  read -rp "Go on? [y/N] " answer
  [[ $answer =~ ^[yY] ]] || die "nothing done"
fi

needs_root
grep -qs 'VERSION_ID="12"' /etc/os-release || die "made for Debian 12, which this machine is not"
install -d -m 755 "$DEVCLUSTER"
[ -n "${DEVCLUSTER_LOCKED:-}" ] || DEVCLUSTER_LOCKED=1 YES=1 exec flock --close "$DEVCLUSTER/lock" "$0"

change_machine() {
  if [ ${#missing[@]} -gt 0 ]; then
    say "installing ${missing[*]}"
    { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "${missing[@]}"; } \
      >"$DEVCLUSTER/packages.log" 2>&1 || die "apt-get failed; see $DEVCLUSTER/packages.log"
    services_off
  fi
  id "$DEVUSER" >/dev/null 2>&1 || useradd --user-group --create-home --home-dir "$home" --shell /bin/bash "$DEVUSER"
  # The user may be there from a cluster whose folder somebody removed by hand.
  [ "$(getent passwd "$DEVUSER" | cut -d: -f6)" != "$home" ] || [ -d "$home" ] ||
    install -d -m 755 -o "$DEVUSER" -g "$(id -g "$DEVUSER")" "$home"
  for kind in uid gid; do
    grep -qs "^$DEVUSER:" "/etc/sub$kind" || usermod "--add-sub${kind}s" "$(free_range)" "$DEVUSER"
  done
  [ -e /dev/fuse ] || modprobe fuse
  chmod 666 /dev/fuse
}

# A package starts its service where systemd runs; this cluster starts daemons of its own.
services_off() {
  [ -d /run/systemd/system ] || return 0
  local package
  for package in "${missing[@]}"; do
    case $package in
      slurm-wlm) systemctl -q disable --now slurmctld slurmd || true ;;
      mariadb-server) systemctl -q disable --now mariadb || true ;;
      munge | slurmdbd) systemctl -q disable --now "$package" || true ;;
    esac
  done
}

# The first range of 65536 ids above those given away.
free_range() {
  sort -u /etc/subuid /etc/subgid | awk -F: 'BEGIN { end = 100000 } $2 + $3 > end { end = $2 + $3 } END { print end "-" end + 65535 }'
}

count_running() {
  local name count=0
  for name in munged mariadb slurmdbd slurmctld "${nodes[@]}"; do ! "$here/daemon.sh" "$name" running || count=$((count + 1)); done
  echo $count
}

write_settings() {
  local file wanted
  for file in slurm.conf gres.conf cgroup.conf slurmdbd.conf; do
    wanted=$(render "$file")
    [ "$wanted" != "$(cat "$DEVCLUSTER/etc/$file" 2>/dev/null)" ] || continue
    [ "$running" = 0 ] || die "it runs with another $file than is asked for now; make cluster-down first"
    install -m 600 /dev/null "$DEVCLUSTER/etc/$file"
    echo "$wanted" >"$DEVCLUSTER/etc/$file"
  done
  chmod 644 "$DEVCLUSTER"/etc/{slurm,gres,cgroup}.conf
}

make_folders() {
  install -d -m 755 "$DEVCLUSTER"/{etc,run,log,state,spool,gpu}
  install -d -m 755 "${nodes[@]/#/$DEVCLUSTER/spool/}"
  local number
  for number in 0 1 2 3; do ln -sfn /dev/null "$DEVCLUSTER/gpu/$number"; done
  install -d -m 755 -o "$DEVUSER" -g "$(id -g "$DEVUSER")" "$DEVCLUSTER/image"
  install -d -m 755 -o munge -g munge "$DEVCLUSTER/munge"
  if [ ! -s "$DEVCLUSTER/munge/munge.key" ]; then
    install -m 400 -o munge -g munge <(head -c 1024 /dev/urandom) "$DEVCLUSTER/munge/munge.key"
  fi
  if [ "$ACCOUNTING" = slurmdbd ] && [ ! -d "$DEVCLUSTER/mariadb/data/mysql" ]; then
    install -d -m 755 -o mysql -g mysql "$DEVCLUSTER/mariadb"
    mariadb-install-db --no-defaults --user=mysql --datadir="$DEVCLUSTER/mariadb/data" --skip-test-db \
      --auth-root-authentication-method=socket >"$DEVCLUSTER/log/mariadb-install" 2>&1 ||
      die "mariadb-install-db failed; see $DEVCLUSTER/log/mariadb-install"
  fi
}

start_daemons() {
  local name
  for name in "${daemons[@]}"; do
    "$here/daemon.sh" "$name" start
    [ "$name" != slurmdbd ] || [ -n "$(sacctmgr -n show cluster devcluster format=cluster)" ] ||
      sacctmgr -iQ add cluster devcluster >/dev/null
  done
  for name in $(sinfo -hN -o '%N %T' | awk '$2 ~ /^(drain|down|fail)/ { print $1 }' | sort -u); do
    say "$name was $(sinfo -hN -n "$name" -o '%T: %E'); resuming it"
    scontrol update "nodename=$name" state=resume
  done
}

running=$(count_running)
change_machine
as_devuser test -x "$DEVCLUSTER" || die "$DEVUSER may not enter $DEVCLUSTER: each folder above it needs x for others"
make_folders
write_settings
"$here/apptainer.sh"
start_daemons
"$here/base.sh"
if [ "$running" = ${#daemons[@]} ]; then
  say "is up already: $(sinfo -hN -o '%N %T' | sort -u | paste -sd, | sed 's/,/, /g')"
  exit 0
fi
cat <<END
devcluster: is up; jobs run as $DEVUSER; all of it is in $DEVCLUSTER
  make submit SCENARIO=1 CLUSTER=devcluster && make watch      a run
  slurm/devcluster/as-user squeue                              any command, as $DEVUSER, in a copy of this checkout
  make cluster-down                                            stop it (PURGE=1: and remove it)
END
