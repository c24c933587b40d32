#!/usr/bin/env bash
# The peers that benchmarks compare with, each pinned in an environment of its own under .cache/peers.
# usage: benchmarks/peers.sh [ppo|current]
set -euo pipefail
cd "$(dirname "$0")/.."
install() { # name, requirements...
  local home=.cache/peers/$1
  shift
  [ -x "$home/bin/python" ] || "${PYTHON:-python3}" -m venv "$home"
  "$home/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
  "$home/bin/pip" install --quiet --disable-pip-version-check "$@"
  "$home/bin/pip" list --format=freeze 2>/dev/null | grep -iE '^(trl|transformers|torch|accelerate|datasets)=='
}
which=${1:-all}
# The last TRL with a PPOTrainer, with the transformers it was released for.
[ "$which" = current ] || install trl-ppo trl==0.29.1 transformers==4.57.6 accelerate==1.15.0 datasets==5.0.1
[ "$which" = ppo ] || install trl-current trl==1.16.0 transformers==5.23.0 accelerate==1.15.0 datasets==5.2.0
