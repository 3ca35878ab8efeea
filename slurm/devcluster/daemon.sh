#!/usr/bin/env bash
# One daemon of the development cluster: daemon.sh NAME start|stop|kill|running
#
# NAME is munged, mariadb, slurmdbd, slurmctld or a node: n1, n2, n3, n4. `start` returns when the daemon answers and does
# nothing where it does; `stop` asks it to end and waits; `kill` is kill -9, for fault injection: a node's jobs live on.
# `running` answers by its exit code.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/settings.sh"
[ $# = 2 ] || die "usage: daemon.sh munged|mariadb|slurmdbd|slurmctld|n1|n2|n3|n4 start|stop|kill|running"
name=$1 action=$2

case $name in
  munged) program=munged pidfile=$DEVCLUSTER/munge/munged.pid ;;
  mariadb) program=mariadbd pidfile=$DEVCLUSTER/mariadb/mariadb.pid ;;
  slurmdbd | slurmctld) program=$name pidfile=$DEVCLUSTER/run/$name.pid ;;
  n[1-4]) program=slurmd pidfile=$DEVCLUSTER/run/$name.pid ;;
  *) die "there is no daemon $name" ;;
esac

# A pid file may be left over from before a reboot: the pid counts only while it is that program, started by this cluster.
running() {
  pid=$(cat "$pidfile" 2>/dev/null) && [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$program" ] &&
    grep -qszxF "SLURM_CONF=$SLURM_CONF" "/proc/$pid/environ"
}
# A daemon takes its pid file away before it ends.
ended() { [[ $(cut -d' ' -f3 "/proc/$pid/stat") =~ ^Z?$ ]]; }

# A node answers when slurmd listens and the controller has heard from it (no '*' in its state).
node_answers() {
  (: <"/dev/tcp/127.0.0.1/$((DEVPORT + 100 + ${name#n}))") &&
    [[ $(sinfo -hN -n "$name" -o %T) =~ ^(idle|mixed|allocated|completing|drain(ed|ing)|reserved)\+?$ ]]
}

answers() {
  case $name in
    munged) munge -n -S "$DEVCLUSTER/munge/munge.socket" ;;
    mariadb) mariadb-admin --no-defaults --socket="$MYSQL_UNIX_PORT" ping ;;
    slurmdbd) sacctmgr -n show cluster ;;
    slurmctld) [[ $(scontrol ping) == *" is UP"* ]] ;;
    *) node_answers ;;
  esac
}

launch() {
  case $name in
    munged) setpriv --reuid=munge --regid=munge --init-groups munged --key-file="$DEVCLUSTER/munge/munge.key" \
      --socket="$DEVCLUSTER/munge/munge.socket" --pid-file="$pidfile" --seed-file="$DEVCLUSTER/munge/munged.seed" \
      --log-file="$DEVCLUSTER/munge/munged.log" ;;
    mariadb) setsid --fork mariadbd --no-defaults --user=mysql --datadir="$DEVCLUSTER/mariadb/data" --socket="$MYSQL_UNIX_PORT" \
      --pid-file="$pidfile" --skip-networking --innodb-buffer-pool-size=64M \
      --log-error="$DEVCLUSTER/mariadb/mariadb.log" ;;
    slurmdbd | slurmctld) "$name" ;;
    *) slurmd -N "$name" ;;
  esac
}

needs_root
case $action in
  running) running ;;
  start)
    ! { running && answers; } >/dev/null 2>&1 || exit 0
    running || (cd / && launch </dev/null >"$DEVCLUSTER/log/$name.start" 2>&1) ||
      die "$name does not start; see $DEVCLUSTER/log/$name.start"
    await 60 answers || die "$name does not answer after 60 s; see $DEVCLUSTER/log"
    say "$name is up" ;;
  stop)
    running || exit 0
    kill "$pid" || true # it may have ended by itself
    await 30 ended || die "$name does not end" ;;
  kill)
    running || die "$name does not run"
    kill -9 "$pid"
    await 5 ended || die "$name does not end" ;;
  *) die "start, stop, kill or running, not $action" ;;
esac
