#!/usr/bin/env bash
# Trains the model in the package, from the package and a soundfont, and scores it:
#
#   bash launch/train_bundled.sh [workdir]        workdir is "bundled" unless given
#
# The soundfont is that of Debian's package fluidr3mono-gm-soundfont; another General MIDI soundfont
# is SOUNDFONT=FILE bash launch/train_bundled.sh. Needs 8 GB of memory and 7 GB on disk.
# Started again after an interruption, it resumes: finished steps are skipped, training continues.
# The time of each step is in WORKDIR/times.tsv, the model in WORKDIR/models/bundled.
set -euo pipefail
if [ $# -gt 1 ] || [ "${1:-}" = "-h" ] || [ "${1:-}" = "--help" ]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0"
  exit $(($# > 1 ? 2 : 0))
fi
soundfont=${SOUNDFONT:-/usr/share/fluidr3mono-gm-soundfont/FluidR3Mono_GM.sf3}
if [ ! -r "$soundfont" ]; then
  echo "$soundfont is not there: install fluidr3mono-gm-soundfont, or give SOUNDFONT=FILE." >&2
  exit 2
fi
soundfont=$(cd "$(dirname "$soundfont")" && pwd)/$(basename "$soundfont")
mkdir -p "${1:-$(dirname "$0")/../bundled}"
folder=$(cd "${1:-$(dirname "$0")/../bundled}" && pwd)
cd "$(dirname "$0")/.."
. launch/environment.sh

use_environment
install -e ".[evaluation]"
install --no-deps tinysoundfont==0.3.7  # it requires pyaudio, which has no wheels, only to play
# Nothing below needs the network; nothing may wait for it either.
export HF_HUB_OFFLINE=1 NO_GCE_CHECK=true
# Two halves of a batch side by side keep a CPU's cores busier than one batch: docs/train.md.
export JAX_NUM_CPU_DEVICES="${JAX_NUM_CPU_DEVICES:-2}"

steps=13
. launch/steps.sh

corpus=general_midi/40000x4.1
models=$folder/models

build() {
  python -c 'import sys; from maa_jax.data import config, datasets
for name in sys.argv[3:]:
    print(datasets.prepare(config.DataConfig(dataset=name, data_dir=sys.argv[1], soundfont=sys.argv[2])))' \
    "$folder/data" "$soundfont" "$corpus" "$corpus-1-all" sonic_sounds
}

train() {  # train STAGE FLAGS...
  local name=$1
  shift
  python -m maa_jax.train --config="configs/$name.py:bundled" --workdir="$folder/$name" \
    --config.data.data_dir="$folder/data" "$@" || stopped $?
  python -m maa_jax.convert --from=workdir --workdir="$folder/$name" --out="$models/$name"
}

parts=(--config.autoencoder="$models/autoencoder" --config.text_encoder="$models/clap")
# The diffusion model hears the only recording of a crow in the package, which the README's first
# command asks for, more often than the others.
mixture=(--config.data.dataset="$corpus:train + sonic_sounds:train[:50]*30 + \
sonic_sounds:train[50:51]*600 + sonic_sounds:train[51:]*30")

embed() {
  python -m maa_jax.embed --config=configs/t2a.py:bundled --config.data.data_dir="$folder/data" \
    "${parts[@]}" "${mixture[@]}" --out="$folder/stored" --epochs=1 --nocontexts
}

half() {  # the weights in half precision, as they are in the package
  python -m maa_jax.convert --from=workdir --workdir="$folder/t2a" --out="$models/bundled" \
    --dtype=float16
}

score() {  # score NAME FLAGS...
  local name=$1
  shift
  rm -rf "$folder/scores/$name"
  python -m maa_jax.evaluate --model="$models/bundled" --classifier="$models/event_classifier" \
    --data_dir="$folder/data" --out="$folder/scores/$name" --cache="$folder/features" "$@"
}

step data "Build the datasets" data/general_midi build
step autoencoder "Train the spectrogram autoencoder" models/autoencoder train autoencoder
step clap "Train CLAP" models/clap train clap
step vocoder "Train the vocoder" models/vocoder train vocoder
step stored "Store the latents of the recordings" stored/latents/index.json embed
step t2a "Train the diffusion model" models/t2a/model_index.json train t2a "${parts[@]}" \
  "${mixture[@]}" --config.vocoder="$models/vocoder" --config.latents="$folder/stored"
step bundled "Write the model" models/bundled/model_index.json half
step event_classifier "Train the judge of events" models/event_classifier train event_classifier
step captioner "Train the captioner" models/captioner train captioner
step retriever "Train the retriever" models/retriever train retriever
step vocoder_scores "Score the vocoder" scores/vocoder/scores.json score vocoder \
  --evaluators=vocoder --dataset="$corpus" --split="test[:100]"
step scores "Score the sounds of combinations never heard" scores/model/scores.json score model \
  --evaluators=events,waveform,clap_score --dataset="$corpus" --split="test[:300]" --steps=25
step recordings "Score their recordings" scores/recordings/scores.json score recordings \
  --evaluators=events,waveform,clap_score --dataset="$corpus" --split="test[:300]" --recordings

printf '\nAll done in %s. The model is %s; the times of all steps:\n\n' "$(clock $SECONDS)" "$models/bundled"
awk -F'\t' '{ sum[$1] += $2; if (!seen[$1]++) order[++n] = $1 }
  END { for (i = 1; i <= n; i++) printf "  %-20s %6.1f min\n", order[i], sum[order[i]] / 60 }' "$folder/times.tsv"
