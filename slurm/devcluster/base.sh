#!/usr/bin/env bash
# Makes $DEVCLUSTER/base.sif where it is absent: Debian 12 with Python, which containers/lada-cpu.def builds on.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/settings.sh"
[ ! -e "$DEVCLUSTER/base.sif" ] || exit 0
needs_root

say "making the base image (about a minute)"
work=$(mktemp -d "$DEVCLUSTER/base.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv \
  bookworm "$work/root" http://deb.debian.org/debian >"$DEVCLUSTER/log/base" 2>&1 ||
  die "debootstrap failed; see $DEVCLUSTER/log/base"
APPTAINER_CACHEDIR=$work/cache APPTAINER_TMPDIR=$work \
  apptainer --quiet build --mksquashfs-args "-Xcompression-level 1" "$work/base.sif" "$work/root" >>"$DEVCLUSTER/log/base" 2>&1 ||
  die "apptainer build failed; see $DEVCLUSTER/log/base"
mv "$work/base.sif" "$DEVCLUSTER/base.sif"
say "the base image is $DEVCLUSTER/base.sif"
