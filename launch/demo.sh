#!/usr/bin/env bash
# Generates sounds with the bundled model, then trains a model here and generates with that one:
#
#   bash launch/demo.sh [workdir]        workdir is "demo" unless given
#
# Needs 2 cores and 8 GB of memory, and no network after installation.
# Started again after an interruption, it resumes: finished steps are skipped, training continues.
set -euo pipefail
if [ $# -gt 1 ] || [ "${1:-}" = "-h" ] || [ "${1:-}" = "--help" ]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0"
  exit $(($# > 1 ? 2 : 0))
fi
mkdir -p "${1:-$(dirname "$0")/../demo}"
demo=$(cd "${1:-$(dirname "$0")/../demo}" && pwd)
cd "$(dirname "$0")/.."
. launch/environment.sh

use_environment
install -e ".[report]"
# Nothing below needs the network; nothing may wait for it either.
export HF_HUB_OFFLINE=1 NO_GCE_CHECK=true
# Two halves of a batch side by side keep a CPU's cores busier than one batch: docs/train.md.
export JAX_NUM_CPU_DEVICES="${JAX_NUM_CPU_DEVICES:-2}"

prompts="$demo/prompts.txt"
cat >"$prompts" <<'END'
a crow caws
a deep kick drum
a cymbal is struck and rings
a guitar chord
vinyl crackle and hiss
END

steps=10
folder=$demo
. launch/steps.sh

sample() {  # sample MODEL FOLDER
  python -m maa_jax.sample --model="$1" --prompts_file="$prompts" --out="$demo/$2"
}

build() {
  python -c 'import sys; from maa_jax.data import config, datasets
print(datasets.prepare(config.DataConfig(dataset="sonic_sounds", data_dir=sys.argv[1])))' "$demo/data"
}

train() {  # train STAGE FLAGS...
  local stage=$1
  shift
  python -m maa_jax.train --config="configs/$stage.py:demo" --workdir="$demo/$stage" \
    --config.data.data_dir="$demo/data" "$@" || stopped $?
  python -m maa_jax.convert --from=workdir --workdir="$demo/$stage" --out="$demo/models/$stage"
}

enhance() {  # captions for the recordings of $unknown, whose own captions and labels are withheld
  python -m maa_jax.enhance --dataset="$unknown" --name=demo --out="$demo/data" --withhold_labels \
    --experts=retrieval --retriever="$models/retriever" --bank_captions="$known" \
    --clip_seconds=4.096 --threshold=0.4
}

models=$demo/models
known="sonic_sounds:train[:60%]"
unknown="sonic_sounds:train[60%:]"
step bundled "Sounds of the bundled model" bundled/samples.jsonl sample bundled bundled
step data "Build the bundled dataset" data/sonic_sounds build
step clap "Train CLAP: which caption belongs to which sound" models/clap train clap
step retriever "Train the retriever: captions of other recordings that match a recording" models/retriever \
  train retriever --config.data.dataset="$known"
step enhanced "Find captions for the other 40 %: the retriever proposes, CLAP chooses" data/enhanced/demo \
  enhance
step autoencoder "Train the spectrogram autoencoder" models/autoencoder train autoencoder
step vocoder "Train the vocoder: spectrogram to waveform" models/vocoder train vocoder
step t2a "Train the diffusion model, with the captions found and with joined sounds" \
  models/t2a/model_index.json train t2a \
  --config.data.dataset="$known + enhanced/demo" --config.data.reprogram.events="$known" \
  --config.text_encoder="$models/clap" \
  --config.autoencoder="$models/autoencoder" \
  --config.vocoder="$models/vocoder"
step trained "Sounds of the model trained here" trained/samples.jsonl sample "$models/t2a" trained
step report "Write the report" report.html python -m maa_jax.report --workdir="$demo"

where=$demo/report.html
printf '\nAll done in %s. The page with everything to hear and see:\n\n  file://%s\n\n' \
  "$(clock $SECONDS)" "$where"
if [ "$(uname)" = Darwin ]; then opener=open; player=afplay; else opener=xdg-open; player=aplay; fi
echo "Open it in a browser ($opener '$where'), or play the sounds here:"
echo "  $player '$demo'/bundled/*.wav"
