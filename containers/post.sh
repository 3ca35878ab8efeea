#!/usr/bin/env bash
# The %post of lada.def and lada-cpu.def: post.sh PYTHON TORCH, inside the image that is being built.
#
# Installs the locked packages into the virtual environment /opt/lada, from the wheels in /mnt (the wheelhouse that
# jobs/wheels.py filled on the host): no Python package is fetched here. Distribution packages are fetched only where the
# base lacks them. LaDa's own code is not in the image: it is bound read-only when a stage runs.
set -euo pipefail
python=python$1 torch=$2 lock=/opt/requirements.lock
for name in $(compgen -e | grep -E '^(PIP_|PYTHON)'); do unset "$name"; done # the caller's settings are about the host
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive PIP_CONFIG_FILE=/dev/null PIP_NO_CACHE_DIR=1

pip=(/mnt/pip-*.whl)
[ -e "${pip[0]}" ] || { echo "no wheels in /mnt; build with: make image CLUSTER=<name>" >&2; exit 2; }

missing=()
command -v "$python" >/dev/null || missing+=("$python")
"$python" -c 'import venv' 2>/dev/null || missing+=("$python-venv")
# Triton and DeepSpeed compile small extensions when they are first used on a GPU.
[ "$torch" = cpu ] || [ -e "/usr/include/$python/Python.h" ] || missing+=("$python-dev" g++)
if [ ${#missing[@]} -gt 0 ]; then
  echo "fetching ${missing[*]}, which the base lacks"
  apt-get -q update
  apt-get -q install -y --no-install-recommends "${missing[@]}"
  rm -rf /var/lib/apt/lists/*
fi

echo "installing $(wc -l <$lock) locked packages"
"$python" -m venv --without-pip /opt/lada
"$python" "${pip[0]}/pip" --python /opt/lada/bin/python --disable-pip-version-check --quiet install \
  --no-index --find-links /mnt --requirement $lock

echo "importing them"
HF_HUB_OFFLINE=1 /opt/lada/bin/python -W ignore - <<'PYTHON'
import datasets, deepspeed, peft, sklearn, torch, transformers
print(f"torch {torch.__version__}, transformers {transformers.__version__}, deepspeed {deepspeed.__version__}")
PYTHON
rm -rf /root/.cache /root/.triton
