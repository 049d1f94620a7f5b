#!/usr/bin/env bash
# Trains on a Cloud TPU pod, and on another one when that is preempted, until
# the run is complete. It sends the commit that is checked out, gets the pod as
# a queued resource, and deletes it when this loop ends, however it ends.
#
#   export PROJECT=... ZONE=us-west4-a SHARE=10.0.0.2:/share
#   bash experiments/launch/tpu_pod.sh --config=configs/flow_grpo.py \
#     --workdir=/mnt/gen_rl/runs/flow_grpo --config.mesh.fsdp=4 \
#     --config.data.prompts_per_step=48 --config.checkpoint.every=10
#
# Variables: PROJECT, ZONE; SHARE, see mount.sh; NAME of the pod; TYPE of the
# accelerator (v5litepod-16, v6e-16) and its RUNTIME; SPOT=0 for a pod that is
# not preempted; TRIES, starts at most; KEEP=1 leaves the pod.
set -euo pipefail

: "${PROJECT:?is the Google Cloud project}" "${ZONE:?is where the TPUs are}"
: "${SHARE:?is what all hosts share, HOST:/PATH or gs://BUCKET}"
NAME=${NAME:-gen-rl}
TYPE=${TYPE:-v5litepod-16} # 16 chips, 4 to a host
TRIES=${TRIES:-50}
case $TYPE in
  v5litepod-*) RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite} ;;
  v6e-*) RUNTIME=${RUNTIME:-v2-alpha-tpuv6e} ;;
esac
: "${RUNTIME:?is the runtime version of $TYPE}"
if [[ ${SPOT:-1} == 1 ]]; then tier=(--spot); else tier=(); fi

where=(--project="$PROJECT" --zone="$ZONE")
queue=(gcloud compute tpus queued-resources)
vm=(gcloud compute tpus tpu-vm)

delete() { # with its pod; waits until both are gone
  "${queue[@]}" delete "$NAME" "${where[@]}" --force --quiet || true
}

acquire() { # returns when the pod is there
  local state filter="name~(^|/)$NAME\$"
  while true; do
    state=$("${queue[@]}" list "${where[@]}" --filter="$filter" \
      --format='value(state.state)') || state=UNKNOWN
    echo "tpu_pod.sh: $NAME is ${state:-not there}" >&2
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDED) delete ;;
      '')
        "${queue[@]}" create "$NAME" "${where[@]}" --node-id="$NAME" \
          --accelerator-type="$TYPE" --runtime-version="$RUNTIME" \
          ${tier[@]+"${tier[@]}"}
        ;;
    esac
    sleep "${POLL:-60}"
  done
}

everywhere() { # a command on all workers at the same time
  "${vm[@]}" ssh "$NAME" "${where[@]}" --worker=all --batch-size=all \
    --command="$1"
}

archive=$(mktemp -d)/gen_rl.tar
git archive --prefix=gen_rl/ --output="$archive" HEAD
at_end() {
  rm -r "$(dirname "$archive")"
  if [[ ${KEEP:-0} != 1 ]]; then delete; fi
}
trap at_end EXIT

worker='bash experiments/launch/tpu_worker.sh'
printf -v setup 'tar xf gen_rl.tar && cd gen_rl && %s setup %q' \
  "$worker" "$SHARE"
# A unit of systemd: it has a name to stop it by if this machine lost sight of
# it, and gets SIGTERM when the VM is shut down.
unit='sudo systemd-run --unit=gen_rl --collect --wait --pipe'
unit+=' --property=TimeoutStopSec=120 --property=KillMode=mixed'
unit+=' --uid=$(id -u) --working-directory=$PWD'
printf -v flags ' %q' "$@"
train='cd gen_rl && { sudo systemctl stop gen_rl 2>/dev/null; '
train+="$unit $worker train$flags; }"

for ((try = 1; try <= TRIES; try++)); do
  acquire
  if ! "${vm[@]}" scp "$archive" "$NAME:" "${where[@]}" --worker=all ||
    ! everywhere "$setup"; then
    echo "tpu_pod.sh: start $try: the workers could not be set up" >&2
    sleep "${POLL:-60}"
    continue
  fi
  code=0
  everywhere "$train" || code=$?
  echo "tpu_pod.sh: start $try ended with code $code" >&2
  if ((code == 0 || code == 2)); then exit "$code"; fi
done
exit 1
