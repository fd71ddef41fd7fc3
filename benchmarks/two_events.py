r"""Whether models generate both of two events in a prompt, with and without reprogramming.

    python -m benchmarks.two_events --model=models/with --model=models/without [--prompts=96]

Each prompt and its sound are joined from two recordings, as dynamic reprogramming does in training
(paper section 3.2.2), with a seed that training does not use. A model's sound for each prompt is
compared with all joined sounds by the bundled CLAP's audio encoder. The table shows how many of the
prompt's two labels the nearest joined sound has, and the best of the five nearest, with chance.
"""

import collections
import re

import jax
import numpy as np
from absl import app, flags

from maa_jax.audio.io import as_read
from maa_jax.data import datasets, input_pipeline
from maa_jax.encoders.clap import ClapScore
from maa_jax.model_folder import hub
from maa_jax.pipeline.pipeline import Pipeline

_MODELS = flags.DEFINE_multi_string("model", ["bundled"], "Model folders.")
_DATASET = flags.DEFINE_string(
    "dataset", "sonic_sounds", "Dataset with a label for each recording."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS keeps datasets.")
_PROMPTS = flags.DEFINE_integer("prompts", 96, "Number of prompts, a multiple of 16.")
_STEPS = flags.DEFINE_integer("steps", 50, "Number of DDIM steps.")
_SEED = flags.DEFINE_integer("seed", 1234, "Seed of the prompts and of the noise.")


def two_events(samples: int) -> tuple[list[str], np.ndarray, list[collections.Counter]]:
    """Returns prompts, their joined sounds [n, samples] and the two labels of each."""
    data = dict(dataset=_DATASET.value, data_dir=_DATA_DIR.value, samples=samples)
    data["reprogram"] = dict(events=_DATASET.value, n_events=(0.0, 1.0, 0.0))
    meta = datasets.metadata(data)
    known = sorted({label for example in meta for label in example["labels"]}, key=len)[::-1]
    event = re.compile(rf"\bof ({'|'.join(map(re.escape, known))})\b")
    sentences, sounds, labels = [], [], []
    batches = input_pipeline.train_iterator(
        data,
        batch_size=16,
        seed=_SEED.value,
        prepare_text=lambda captions: np.array(captions, object),
    )
    while len(sentences) < _PROMPTS.value:
        batch = next(batches)
        for sentence, sound, index in zip(*map(batch.get, ("text", "audio", "index")), strict=True):
            found = event.search(sentence)
            if found and meta[index]["labels"]:
                sentences.append(sentence)
                sounds.append(sound)
                labels.append(collections.Counter([meta[index]["labels"][0], found[1]]))
    n = _PROMPTS.value
    return sentences[:n], np.stack(sounds[:n]), labels[:n]


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    clap = ClapScore(hub.BUNDLED)
    pipes = {model: Pipeline.from_pretrained(model) for model in _MODELS.value}
    rate = next(iter(pipes.values())).sample_rate
    seconds = min(pipe.max_duration for pipe in pipes.values())
    sentences, sounds, labels = two_events(round(seconds * rate))
    shared = np.array([[(a & b).total() / 2 for b in labels] for a in labels])
    heard = clap.audio_embeddings(sounds, rate)
    print(f"{jax.devices()[0].device_kind}, {len(sentences)} prompts, {_STEPS.value} steps")
    head = ("model", "labels right, nearest", "best of 5", "chance", "best of 5 by chance")
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    rng = np.random.default_rng(0)
    five = np.mean([rng.choice(row, 5, replace=False).max() for row in shared for _ in range(50)])
    for model, pipe in pipes.items():
        wavs = pipe(sentences, steps=_STEPS.value, batch_size=16, seed=0)
        order = np.argsort(-clap.audio_embeddings(as_read(wavs), rate) @ heard.T, axis=1)
        right = np.take_along_axis(shared, order[:, :5], axis=1)
        print(
            f"| {model} | {right[:, 0].mean():.1%} | {right.max(1).mean():.1%} "
            f"| {shared.mean():.1%} | {five:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
