"""Scores sounds that a model generates from a dataset's captions, recordings, or a folder's sounds.

    python -m maa_jax.evaluate --model=bundled --dataset=sonic_sounds --split=train --out=scores
    python -m maa_jax.evaluate --model=bundled --evaluators=label_accuracy,clap_score --out=scores
    python -m maa_jax.evaluate --workdir=runs/t2a --protocol=clap-ms --split=test --out=scores
    python -m maa_jax.evaluate --sounds=FOLDER --reference=audiocaps:test \
        --protocol=specvqgan --melception=models/melception --out=scores
    python -m maa_jax.evaluate --recordings --split=test --evaluators=waveform --out=scores
    python -m maa_jax.evaluate --model=bundled --evaluators=vocoder --split=test --out=scores
    python -m maa_jax.evaluate --model=models/retriever --evaluators=recall --out=scores
    python -m maa_jax.evaluate --compare=a/scores.json,b/scores.json
    python -m maa_jax.evaluate --table=1 --rows=rows.csv --split=test --out=tables/1

Evaluators:

    label_accuracy  whether the recording nearest to a sound, or one of the five nearest, shares a
                    label with the recording whose caption the sound was generated from
    clap_score      mean cosine of the CLAP embeddings of sounds and their captions
    recall          how often a retriever, which is then the model, finds recordings and captions
    events          whether number, order, instruments and registers of events are those of the
                    captions, by a classifier (--classifier); for datasets that know the truth
    waveform        offset, clipping, loudness and clicks of sounds
    vocoder         distance of the model's vocoder from recordings, beside Griffin-Lim's
    similarity      1 - MSE of the mels of sounds and of the recordings that they were made from

Protocols are sets of scores as published tools compute them: docs/evaluate.md says what each
measures. They compare with --reference, the dataset's recordings by default, and refuse what would
mislead: captions that the model was trained on, silent sounds, other lengths, files that should be
paired and are not.

With --recordings the dataset's own recordings are scored, which shows what a perfect model reaches.
The captions of a folder's sounds are read from its samples.jsonl, as maa_jax.sample writes it, or
from a CSV file with the columns file, caption and label (--captions_file). The processes of a run
divide the sounds among them. Scores are printed and written to OUT/scores.json, with the options
that led to them, 95 % intervals, and what made each score. --compare prints the differences of two
such files, with their intervals, and refuses scores that may not be compared.

--table and --figure score the paper's tables and figures again, from the models that a small file
names. Its column `name` names a row, and every other column one of these flags, whose values on the
command line are the defaults of all rows:

    name,model,recordings,mos-q,mos-f                 name,model,guidance_scale
    Reference,,true,74.7 ± 0.9,80.5 ± 1.8             mine,models/t2a,1
    CLAP,models/t2a,,72.5 ± 0.9,78.6 ± 1.0            mine,models/t2a,3

--start_from=own makes each sound from the recording of its caption, --start_from=next from another
one, with the options of editing, and --fill=thick within masks: these are the sounds of Table 2
(narrow regions: thin, wide ones: thick) and of Figure 5 (a row for each strength).

Tables 1 (text encoders), 2 (masks of inpainting), 5 (captions), 7 (latent channels) and 8 (global
conditions), Figures 5 (sound to sound; its column t0) and 7 (guidance; a curve for each name).
Opinion scores are columns of the file. OUT then holds table.csv, table.md and table.png, with the
published values of rows of the same names, and a folder of scores for each row.
"""

from maa_jax import command, options
from maa_jax.evaluate.evaluation import evaluate
from maa_jax.evaluate.tables import Tabulation, tabulate


def define_flags() -> None:
    """Defines the flags, which other programs also define: call it only from this program."""
    options.define_flags(Tabulation)


def main() -> None:
    """Runs the program that this module's docstring describes."""
    from maa_jax import devices

    request = options.from_flags(Tabulation)
    devices.initialize()
    if request.table or request.figure:
        tabulate(request)
    else:
        evaluate(request)


def run() -> None:
    """Entry point of `python -m maa_jax.evaluate` and of `maa-evaluate`."""
    command.run(main, define_flags)


if __name__ == "__main__":
    run()
