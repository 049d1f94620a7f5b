#!/usr/bin/env bash
# One process of a training run, ending with a code that schedulers can act on.
# Flags are those of gen_rl.main; the workdir is one that all hosts see.
#
#   bash experiments/launch/train.sh --config=configs/flow_grpo.py \
#     --workdir=/mnt/gen_rl/runs/flow_grpo
#
#   0     the run is complete
#   75    it was stopped by SIGTERM and has saved: the same command goes on
#   2     a person has to change something: do not repeat it
#   else  it broke (3, 134: another process is gone): the same command goes on
#
# gen_rl.main alone says 0 for "saved after SIGTERM", too, and does so in every
# process as soon as one of them gets the signal.
set -uo pipefail

workdir=
for flag in "$@"; do
  case $flag in --workdir=*) workdir=${flag#*=} ;; esac
done
if [[ $workdir != /* ]]; then
  echo "train.sh: --workdir=${workdir:-...} is not the absolute path of a" \
    "folder that all hosts share (a bucket has to be mounted)" >&2
  exit 2
fi

# result.json, written last, counts the updates of the newest checkpoint.
complete() {
  local steps newest
  steps=$(sed -n 's/^  "steps": \([0-9]*\),*$/\1/p' "$workdir/result.json")
  newest=$(ls "$workdir/checkpoints" | grep -x '[0-9]*' | sort -n | tail -n 1)
  [[ -n $steps && $steps == "$newest" ]]
} 2>/dev/null

child='' signalled=''
trap 'signalled=1; [[ $child ]] && kill -TERM "$child" 2>/dev/null' TERM INT
python -m gen_rl.main "$@" &
child=$!
if [[ $signalled ]]; then kill -TERM "$child"; fi # it came before the name
while true; do # a signal ends `wait`, not what it waits for
  signalled=
  wait "$child"
  code=$?
  [[ $signalled ]] || break
done
if ((code == 0)) && ! complete; then
  code=75
fi
exit "$code"
