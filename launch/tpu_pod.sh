#!/usr/bin/env bash
# Trains a stage on all hosts of a Cloud TPU slice:
#
#   bash launch/tpu_pod.sh NAME ZONE --config=t2a --workdir=gs://BUCKET/runs/t2a \
#     --config.data.data_dir=gs://BUCKET/data [any flag of maa_jax.train]
#
# Needs an existing slice (gcloud compute tpus tpu-vm create NAME ...) and a gcloud that may log in
# to it. Copies the last commit of this checkout to every host, installs it there and starts one
# process on each host. Start it again to resume from the latest checkpoint. Every host must see the
# workdir, the data and the model folders: model folders on a mounted disk, the others there or in a
# bucket.
#
# Checked for syntax only, not run on a TPU slice yet.
set -euo pipefail
if [ $# -lt 4 ]; then
  sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
name=$1
zone=$2
shift 2
cd "$(dirname "$0")/.."

tpu() {  # tpu ssh|scp ARGUMENTS...: on every host
  local what=$1
  shift
  gcloud compute tpus tpu-vm "$what" --zone="$zone" --worker=all "$@"
}

# The processes connect to host 0.
hosts=$(gcloud compute tpus tpu-vm describe "$name" --zone="$zone" \
  --format='value[delimiter=" "](networkEndpoints[].ipAddress)')
first=${hosts%% *}
count=$(echo "$hosts" | wc -w | tr -d ' ')

archive=$(mktemp -d)/maa_jax.tar.gz
git archive --format=tar.gz -o "$archive" HEAD
tpu scp "$archive" "$name:maa_jax.tar.gz"

# The images' own Python may be older than 3.11; uv installs one.
tpu ssh "$name" --command='set -e
mkdir -p maa_jax && tar -xzf maa_jax.tar.gz -C maa_jax && cd maa_jax
command -v ~/.local/bin/uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
[ -d .venv ] || ~/.local/bin/uv venv --python 3.12 .venv
~/.local/bin/uv pip install --quiet --python .venv/bin/python -e ".[tpu,train]"'

metadata=http://metadata.google.internal/computeMetadata/v1/instance/attributes
tpu ssh "$name" --command="set -e
cd maa_jax
export JAX_COORDINATOR_ADDRESS=$first:8476 JAX_NUM_PROCESSES=$count
export JAX_PROCESS_ID=\$(curl -s -H 'Metadata-Flavor: Google' $metadata/agent-worker-number)
.venv/bin/python -m maa_jax.train $(printf '%q ' "$@")"
