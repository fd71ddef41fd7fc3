"""Precomputes what the frozen networks of a run make of its captions and recordings.

    python -m maa_jax.embed --config=configs/t2a.py:t5 --out=embeddings/t5 --epochs=1
    python -m maa_jax.train --config=configs/t2a.py:t5 --config.text_embeddings=embeddings/t5 \
        --config.latents=embeddings/t5 ...

Contexts are those of the captions of the config's splits for training and evaluation, of its fixed
prompts and of the empty one. A context of T5-Large takes 315 KB, computed and stored in float32, or
half of it with --dtype=float16.

With --epochs=N the latents of N epochs of training are stored too: N crops of each window of the
recordings, with the events of reprogramming and the contexts of the captions that it composes. Of a
clip of 10 s they take 25 KB, the mean and the log-variance of the posterior in float32, from which
training draws anew. Training must then have the same data, seed and autoencoder, which is checked.
With --nocontexts only they are stored, where the text encoder is small and the captions are many.

Recordings are read by `--config.data.workers` processes, which pays beside a fast accelerator.
Several processes divide the work. Latents that are there already are not computed again: the same
command goes on after an interruption, and more epochs are added to fewer.

With a retriever it writes a bank of captions instead, in which that retriever finds captions for
recordings:

    python -m maa_jax.embed --config=configs/retriever.py --retriever=models/retriever --out=bank

A bank holds only the captions of the config's training split.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from maa_jax import command, options
from maa_jax.options import REQUIRED, Options, option

if TYPE_CHECKING:
    import ml_collections

    from maa_jax.data import stored_latents


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedding(Options):
    """Options of the computation, apart from the config."""

    out: str = option(REQUIRED, "Folder for the contexts or the bank.", path=True)
    retriever: str | None = option(None, "Model folder of a retriever; writes a bank of captions.")
    dtype: str = option(
        "float32",
        "Type of contexts on disk; float16 takes half the room, and rounds to 5e-4 of a value.",
        choices=("float32", "float16"),
    )
    epochs: float = option(0.0, "Epochs of training whose latents are stored too.", least=0)
    contexts: bool = option(True, "Store the contexts of the captions.")
    batch_size: int = option(32, "Captions or clips encoded at a time, over all devices.", least=1)

    def __post_init__(self):
        super().__post_init__()
        if self.retriever and self.epochs:
            raise ValueError(
                f"retriever={self.retriever!r}, epochs={self.epochs}: a bank holds captions alone;"
                " give one of them"
            )
        if not (self.contexts or self.epochs):
            raise ValueError("contexts=False: there is nothing else to store; give epochs=1")


def define_flags() -> None:
    """Defines the flags, which other programs also define: call it only from this program."""
    command.define_config_flag()
    options.define_flags(Embedding)


def embed(config: "ml_collections.ConfigDict", request: Embedding) -> int:
    """Writes this process's share of the contexts of a run's captions, or of a bank.

    Args:
      config: config of the diffusion stage; for a bank, of any stage, whose `data` is read.
      request: options of the computation and its output.

    Returns:
      The number of captions, contexts or latents written.

    Raises:
      ValueError: the config is invalid, or training would make captions that cannot be known
        before it runs.
    """
    from maa_jax import devices
    from maa_jax.training import config as run_config

    run_config.check(config)
    with devices.hold_folder(request.out):
        if request.retriever:
            from maa_jax.data import datasets
            from maa_jax.enhancement import retrieval

            captions = datasets.captions(config.data, config.data.split)
            return retrieval.write_bank(
                request.retriever, captions, request.out, batch_size=request.batch_size
            )
        return _embed_contexts(config, request)


def _embed_contexts(config: "ml_collections.ConfigDict", request: Embedding) -> int:
    if not request.contexts:
        return len(_embed_examples(config, request))
    if config.data.reprogram.events and not request.epochs:
        raise ValueError(
            f"config.data.reprogram.events={config.data.reprogram.events!r}: reprogramming makes "
            "new captions during training, whose contexts cannot be precomputed; set it to '', or "
            "store the examples too, with --epochs=1"
        )
    import jax
    import numpy as np

    from maa_jax.data import datasets, text_embeddings
    from maa_jax.encoders.batching import Batches
    from maa_jax.encoders.text import digest, find
    from maa_jax.encoders.visual import open_conditioner

    folder = find(config.text_encoder)
    # In float32, whatever the denoiser's dtype: as in training without stored contexts.
    conditioner = open_conditioner(folder, config.conditioning)
    batches = Batches(request.batch_size)
    params, encode = batches.put(conditioner.params), jax.jit(conditioner.encode)

    def contexts(captions: Sequence[str]) -> np.ndarray:
        return batches.run(encode, params, conditioner.prepare(captions))

    captions = ["", *config.summary.prompts]
    captions += datasets.captions(config.data, config.data.eval_split)
    if request.epochs:
        captions += _embed_examples(config, request).captions
    if not config.data.reprogram.events:
        captions += datasets.captions(config.data, config.data.split)
    return text_embeddings.write(
        request.out,
        captions,
        contexts,
        text_encoder=str(config.text_encoder),
        text_encoder_sha256=digest(folder, config.conditioning),
        dtype=request.dtype,
        batch_size=batches.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _embed_examples(
    config: "ml_collections.ConfigDict", request: Embedding
) -> "stored_latents.Latents":
    """Writes this process's share of the latents of a run's examples; returns those of all."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    from maa_jax import schema
    from maa_jax.audio.mel import MelConfig
    from maa_jax.data import datasets, input_pipeline, stored_latents
    from maa_jax.data.config import DataConfig
    from maa_jax.encoders.batching import Batches
    from maa_jax.latents import LatentCodec
    from maa_jax.model_folder import hub
    from maa_jax.model_folder.index import content_hash

    data = DataConfig.of(config.data)
    process = jax.process_index()
    mel = schema.build(MelConfig, config.mel, "config.mel")
    # In the run's dtype, as in a run that encodes them.
    codec, params = LatentCodec.load(config.autoencoder, mel=mel, dtype=config.dtype)
    codec.check_clip(data.samples)
    batches = Batches(request.batch_size)
    on_devices, moments = batches.put(params), jax.jit(codec.moments)

    def encode(clips: np.ndarray) -> np.ndarray:
        return batches.run(moments, on_devices, clips)

    facts = stored_latents.facts(data, datasets.contents(data, process), config.seed)
    facts["autoencoder"] = content_hash(hub.resolve(config.autoencoder) / "vae")
    count = round(request.epochs * datasets.num_examples(data, data.split))
    read = input_pipeline.training_examples(data, seed=config.seed, process_index=process)
    folder = pathlib.Path(request.out, stored_latents.FOLDER)
    stored_latents.write(
        folder,
        count,
        read,
        encode,
        facts,
        batch_size=batches.batch_size,
        process_index=process,
        process_count=jax.process_count(),
    )
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("latents")
    return stored_latents.Latents(folder)


def main() -> None:
    """Runs the program that this module's docstring describes."""
    from maa_jax import devices

    devices.initialize()
    request = options.from_flags(Embedding)
    count = embed(flags.FLAGS.config, request)
    what = "captions" if request.retriever else "contexts" if request.contexts else "latents"
    print(f"{count} {what} in {request.out}")


def run() -> None:
    """Entry point of `python -m maa_jax.embed` and of `maa-embed`."""
    command.run(main, define_flags)


if __name__ == "__main__":
    run()
