"""Precomputes the contexts of all captions of a run.

    python -m maa_jax.embed --config=configs/t2a.py:t5 --out=embeddings/t5
    python -m maa_jax.train --config=configs/t2a.py:t5 --config.text_embeddings=embeddings/t5 ...

The captions are those of the config's splits for training and evaluation, its fixed prompts and
the empty one. Several processes divide them; a context of T5-Large takes 315 KB, computed
and stored in float32, or half of it with --dtype=float16.

With a retriever it writes a bank of captions instead, in which that retriever finds captions for
recordings:

    python -m maa_jax.embed --config=configs/retriever.py --retriever=models/retriever --out=bank

A bank holds only the captions of the config's training split.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from maa_jax import command, options
from maa_jax.options import REQUIRED, Options, option

if TYPE_CHECKING:
    import ml_collections


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
    batch_size: int = option(32, "Captions encoded at a time, over all devices.", least=1)


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
      The number of captions written.

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
    if config.data.reprogram.events:
        raise ValueError(
            f"config.data.reprogram.events={config.data.reprogram.events!r}: reprogramming makes "
            "new captions during training, whose contexts cannot be precomputed; set it to ''"
        )
    import jax
    import numpy as np

    from maa_jax.data import datasets, text_embeddings
    from maa_jax.encoders.batching import Batches
    from maa_jax.encoders.text import TextConditioner, digest, find

    folder = find(config.text_encoder)
    # In float32, whatever the denoiser's dtype: as in training without stored contexts.
    conditioner = TextConditioner.from_folder(folder)
    batches = Batches(request.batch_size)
    params, encode = batches.put(conditioner.params), jax.jit(conditioner.encode)

    def contexts(captions: Sequence[str]) -> np.ndarray:
        return batches.run(encode, params, conditioner.prepare(captions))

    captions = ["", *config.summary.prompts]
    for split in (config.data.split, config.data.eval_split):
        captions += datasets.captions(config.data, split)
    return text_embeddings.write(
        request.out,
        captions,
        contexts,
        text_encoder=str(config.text_encoder),
        text_encoder_sha256=digest(folder),
        dtype=request.dtype,
        batch_size=batches.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def main() -> None:
    """Runs the program that this module's docstring describes."""
    from maa_jax import devices

    devices.initialize()
    request = options.from_flags(Embedding)
    count = embed(flags.FLAGS.config, request)
    print(f"{count} {'captions' if request.retriever else 'contexts'} in {request.out}")


def run() -> None:
    """Entry point of `python -m maa_jax.embed` and of `maa-embed`."""
    command.run(main, define_flags)


if __name__ == "__main__":
    run()
