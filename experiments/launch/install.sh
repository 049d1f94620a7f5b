#!/usr/bin/env bash
# Installs the checkout in ~/venv of this host, whose own Python may be too old.
#
#   bash experiments/launch/install.sh EXTRA  # gpu or tpu
set -euo pipefail

PATH=~/.local/bin:$PATH
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
if [[ ! -x ~/venv/bin/python ]]; then
  uv venv --quiet --python 3.11 ~/venv
fi
uv pip install --quiet --python ~/venv/bin/python -e ".[$1]"
