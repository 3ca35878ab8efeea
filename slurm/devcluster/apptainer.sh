#!/usr/bin/env bash
# Puts Apptainer under $DEVCLUSTER/apptainer where `apptainer` is not on the PATH.
#
# The package is Debian sid's. It needs a newer C library than Debian 12 has, so it gets one of its own, and its two
# programs are told to load that one (RPATH, not RUNPATH: the libraries' own dependencies must find it too). Apptainer
# finds its settings relative to its programs, so nothing lies outside the folder.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/settings.sh"
! command -v apptainer >/dev/null || exit 0
needs_root

say "unpacking Apptainer from Debian sid"
work=$(mktemp -d "$DEVCLUSTER/apptainer.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,cache,debs,unpacked/libs,c}
echo 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian sid main' > "$work/sid.list"
sid=(apt-get -q -o Dir::Etc::SourceList="$work/sid.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::Etc::Preferences=/dev/null
  -o Dir::Etc::PreferencesParts=/dev/null -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache"
  -o APT::Sandbox::User=root)
"${sid[@]}" update >"$work/log" 2>&1 || { cat "$work/log" >&2; die "cannot read the package list of Debian sid"; }
(cd "$work/debs" && "${sid[@]}" download apptainer libc6 libseccomp2 libsqlite3-0) >"$work/log" 2>&1 ||
  { cat "$work/log" >&2; die "cannot download Apptainer"; }

for package in libc6 libseccomp2 libsqlite3-0; do dpkg-deb -x "$work/debs/${package}"_*.deb "$work/c"; done
cp -a "$work"/c/usr/lib/x86_64-linux-gnu/*.so* "$work/unpacked/libs/"
dpkg-deb -x "$work"/debs/apptainer_*.deb "$work/package"
mv "$work"/package/usr/* "$work"/package/{etc,var} "$work/unpacked/"
mkdir -p "$work/unpacked/var/lib/apptainer/mnt/session"
ln -s ../etc ../var "$work/unpacked/lib/" # the starter reckons from lib, the program itself from bin

libs=$DEVCLUSTER/apptainer/libs
for program in bin/apptainer lib/x86_64-linux-gnu/apptainer/bin/starter; do
  patchelf --set-interpreter "$libs/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$libs" "$work/unpacked/$program"
done
chmod 755 "$work/unpacked"
rm -rf "$DEVCLUSTER/apptainer"
mv "$work/unpacked" "$DEVCLUSTER/apptainer"
hash -r
apptainer --version >/dev/null || die "the unpacked Apptainer does not start"
say "$(apptainer --version) is in $DEVCLUSTER/apptainer"
