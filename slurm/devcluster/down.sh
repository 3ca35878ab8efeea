#!/usr/bin/env bash
# Stops the development cluster and whatever its jobs left running: make cluster-down [PURGE=1]
#
# PURGE=1 also removes the folder, runs included, and the user if up.sh made it. Debian packages stay.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/settings.sh"
[ -d "$DEVCLUSTER" ] || { say "there is none in $DEVCLUSTER"; exit 0; }
needs_root
[ -n "${DEVCLUSTER_LOCKED:-}" ] || DEVCLUSTER_LOCKED=1 exec flock --close "$DEVCLUSTER/lock" "$0"

no_jobs() { [ -z "$(squeue -ho %A)" ]; }

# Processes of this cluster's jobs: the ordinary user's and slurmstepd, where the environment or the folder that they
# stand in is this cluster's.
leftovers() {
  local owner process
  owner=$(id -u "$DEVUSER" 2>/dev/null || true)
  for process in /proc/[0-9]*; do
    [ "$(stat -c %u "$process" 2>/dev/null)" = "${owner:-none}" ] || [ "$(cat "$process/comm" 2>/dev/null)" = slurmstepd ] || continue
    grep -qsF "$DEVCLUSTER/" "$process/environ" "$process/cmdline" || [[ $(readlink "$process/cwd")/ == "$DEVCLUSTER"/* ]] || continue
    echo "${process#/proc/}"
  done
}
none_left() { [ -z "$(leftovers)" ]; }

if "$here/daemon.sh" slurmctld running && ! no_jobs; then
  say "cancelling $(squeue -ho %A | sort -u | wc -l) jobs"
  squeue -ho %A | sort -u | xargs -r scancel || true
  await 20 no_jobs || say "some jobs do not end; their processes are killed"
fi
for name in n4 n3 n2 n1 slurmctld slurmdbd mariadb munged; do
  "$here/daemon.sh" "$name" stop || "$here/daemon.sh" "$name" kill
done
leftovers | xargs -r kill -9 2>/dev/null || true
await 10 none_left || die "still running: $(leftovers | paste -sd' ')"
awk -v folder="$DEVCLUSTER/" 'index($2, folder) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r umount
say "is down"

if [ "${PURGE:-}" = 1 ]; then
  [ "$(getent passwd "$DEVUSER" | cut -d: -f6)" != "$home" ] || userdel "$DEVUSER"
  rm -rf --one-file-system "$DEVCLUSTER"
  say "$DEVCLUSTER is removed; the Debian packages stay"
fi
