#!/usr/bin/env bash
# Runs one training on every worker of a Cloud TPU VM slice made by tpu_create.sh.
set -euo pipefail

usage() {
  cat >&2 <<'TEXT'
usage: launch/tpu_run.sh NAME ZONE FLAGS OF beit_jax.main...
  launch/tpu_run.sh pod us-central2-b --config configs/beit/pretrain_in1k.py:large \
    --workdir gs://BUCKET/run --config.data.path=gs://BUCKET/tfds
The workdir and the data must lie where every worker sees them: a bucket, or a mounted disk.
The training goes on when this terminal closes; its log is ~/beit_jax/run.log on each worker.
Start the same command again after a stop: the run goes on from its newest checkpoint.
TEXT
  exit 2
}
[[ $# -ge 3 ]] || usage

name=$1 zone=$2
shift 2
flags=$(printf ' %q' "$@")
# `jax.distributed` finds the other workers by itself on a TPU VM; every worker runs the same line
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command="
  cd beit_jax
  if [ -f run.pid ] && kill -0 \"\$(cat run.pid)\" 2>/dev/null; then
    echo \"a training is already running on \$(hostname), process \$(cat run.pid)\" >&2
    exit 1
  fi
  nohup .venv/bin/python -m beit_jax.main --distributed $flags > run.log 2>&1 &
  echo \$! > run.pid
  echo \"started on \$(hostname), process \$(cat run.pid)\""

cat <<TEXT
follow it:  gcloud compute tpus tpu-vm ssh $name --zone $zone --worker=0 --command='tail -f beit_jax/run.log'
stop it:    gcloud compute tpus tpu-vm ssh $name --zone $zone --worker=all --command='kill \$(cat beit_jax/run.pid)'
TEXT
