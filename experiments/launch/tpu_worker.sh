#!/usr/bin/env bash
# What tpu_pod.sh does on every worker of a pod, in the folder of the code.
#
#   bash experiments/launch/tpu_worker.sh setup SHARE
#   bash experiments/launch/tpu_worker.sh train FLAG...
set -euo pipefail

action=$1
shift

attribute() { # of this VM, from Google's metadata server
  local site=http://metadata.google.internal/computeMetadata/v1
  curl -sf -H 'Metadata-Flavor: Google' "$site/instance/attributes/$1"
}

case $action in
  setup)
    bash experiments/launch/mount.sh "$1"
    # Starts and ends the TPU runtime faster, as jax says.
    echo always |
      sudo tee /sys/kernel/mm/transparent_hugepage/enabled >/dev/null
    bash experiments/launch/install.sh tpu
    ;;
  train)
    # No variable of such a VM says that it is one of several.
    process=$(attribute agent-worker-number)
    IFS=, read -ra hosts <<<"$(attribute worker-network-endpoints)"
    coordinator=${hosts[0]##*:}:8476 # "ip", or "name:id:ip" of older ones
    PATH=~/venv/bin:$PATH exec bash experiments/launch/train.sh \
      --coordinator="$coordinator" --processes="${#hosts[@]}" \
      --process="$process" "$@"
    ;;
esac
