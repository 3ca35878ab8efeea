#!/usr/bin/env bash
# Makes a virtual environment with locked versions: containers/make-venv.sh VENV [PYTHON]
#
# Without a GPU the CPU build of torch is installed. Where pip's own index does not carry it, it comes from
# TORCH_INDEX (default: the PyTorch project's CPU index). With a GPU the CUDA build comes from pip's own index.
set -euo pipefail
venv=$1 python=${2:-python3}
here=$(cd "$(dirname "$0")" && pwd)
torch_index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
torch=$(grep '^torch==' "$here/requirements.lock")

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "LaDa needs Python 3.11 or newer; name one with PYTHON=<path>" >&2; exit 2; }
echo "making $venv with $torch and $(wc -l < "$here/requirements.lock") locked packages: some minutes"
"$python" -m venv "$venv" ||
  { echo "no venv module; on Debian: apt-get install python3-venv" >&2; exit 2; }
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
  pip install "$torch"
elif [ -n "${TORCH_INDEX:-}" ]; then
  pip install "$torch+cpu" --extra-index-url "$torch_index"
else
  pip install "$torch+cpu" 2>/dev/null || pip install "$torch+cpu" --extra-index-url "$torch_index" ||
    { echo "no CPU build of $torch; name an index that has it with TORCH_INDEX=<url>" >&2; exit 2; }
fi
echo "torch is installed, now the rest"
grep -v '^torch==' "$here/requirements.lock" > "$venv/requirements.txt"
pip install -r "$venv/requirements.txt" -r "$here/requirements-test.lock"
