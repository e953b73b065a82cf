#!/usr/bin/env bash
# Creates a Cloud TPU VM slice and installs this repository on every worker of it.
set -euo pipefail

usage() {
  cat >&2 <<'TEXT'
usage: launch/tpu_create.sh NAME ZONE TYPE [RUNTIME]
  NAME     of the slice, free to choose
  ZONE     for example us-central2-b
  TYPE     accelerator type, for example v4-32, v5litepod-16, v5p-32, v6e-16
  RUNTIME  software version; default by TYPE: tpu-ubuntu2204-base, v2-alpha-tpuv5-lite,
           v2-alpha-tpuv5 or v2-alpha-tpuv6e
Needs gcloud, logged in, with a project set, and TPU quota in ZONE. SPOT=1 asks for a spot slice.
Delete it yourself when you are done; the command is printed at the end.
TEXT
  exit 2
}
[[ $# -eq 3 || $# -eq 4 ]] || usage

name=$1 zone=$2 type=$3
case $type in
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  *) runtime=tpu-ubuntu2204-base ;;
esac
runtime=${4:-$runtime}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

create=(gcloud compute tpus tpu-vm create "$name"
  --zone "$zone" --accelerator-type "$type" --version "$runtime")
if [[ ${SPOT:-0} == 1 ]]; then
  create+=(--spot)
fi
"${create[@]}"

# what git tracks here, as it stands: local changes travel too
archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git -C "$root" ls-files -z | tar -C "$root" --null --files-from=- -czf "$archive"
gcloud compute tpus tpu-vm scp "$archive" "$name:beit_jax.tar.gz" --zone "$zone" --worker=all

# Ubuntu 22.04 comes with Python 3.10: take 3.11 from its own archive where python3 is too old
# shellcheck disable=SC2016  # the variables are the workers'
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command='
  set -eu
  mkdir -p beit_jax && tar -C beit_jax -xzf beit_jax.tar.gz && cd beit_jax
  python=python3
  if ! python3 -c "import sys; sys.exit(sys.version_info < (3, 11))"; then
    sudo apt-get update -q && sudo apt-get install -qy python3.11 python3.11-venv
    python=python3.11
  fi
  $python -m venv .venv
  .venv/bin/python -m pip install -q --upgrade pip
  .venv/bin/python -m pip install -q --editable ".[tpu]"
  .venv/bin/python -c "import jax; print(jax.__version__)"'

echo "ready. Train:   launch/tpu_run.sh $name $zone --config ... --workdir gs://..."
echo "Delete:         gcloud compute tpus tpu-vm delete $name --zone $zone"
