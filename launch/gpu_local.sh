#!/usr/bin/env bash
# Trains on the GPUs of this machine: one process for all of them, or one process for each.
set -euo pipefail

usage() {
  cat >&2 <<'TEXT'
usage: launch/gpu_local.sh [--one-process-per-gpu] FLAGS OF beit_jax.main...
  launch/gpu_local.sh --config configs/beit/finetune_in1k.py --workdir runs/ft \
    --config.init.checkpoint=runs/pretrain_in22k
One process for all GPUs is the default and needs nothing else. One process per GPU gives each GPU
its own input pipeline; global_batch_size must then be a multiple of the number of GPUs.
CUDA_VISIBLE_DEVICES chooses GPUs; PYTHON names the interpreter (default .venv/bin/python).
TEXT
  exit 2
}

per_gpu=0
if [[ ${1:-} == --one-process-per-gpu ]]; then
  per_gpu=1
  shift
fi
[[ $# -ge 2 ]] || usage

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}
if [[ $per_gpu -eq 0 ]]; then
  exec "$python" -m beit_jax.main "$@"
fi

if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
  IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
else
  mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader)
fi
[[ ${#gpus[@]} -ge 1 ]] || { echo "no GPU found by nvidia-smi" >&2; exit 1; }

port=${PORT:-12355}
pids=()
stop_all() {
  for pid in "${pids[@]}"; do
    kill "$pid" 2>/dev/null || true
  done
}
trap stop_all EXIT INT TERM
for i in "${!gpus[@]}"; do
  CUDA_VISIBLE_DEVICES=${gpus[$i]} "$python" -m beit_jax.main "$@" \
    --coordinator="localhost:$port" --num_processes="${#gpus[@]}" --process_id="$i" &
  pids+=($!)
done
# the first process that fails ends all: the others would wait for it
for _ in "${pids[@]}"; do
  wait -n
done
