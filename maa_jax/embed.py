"""Computes once what is read often: the text encoder's states of all captions of a run.

    python -m maa_jax.embed --config=configs/t2a.py:t5 --out=embeddings/t5
    python -m maa_jax.train --config=configs/t2a.py:t5 --config.text_embeddings=embeddings/t5 ...

The captions are those of the config's splits for training and evaluation, its fixed prompts and
the empty one. Several processes share them; a context of T5-Large is 158 KB.

Or a bank of captions, in which the retriever of a model folder finds those of a recording:

    python -m maa_jax.embed --config=configs/retriever.py --retriever=models/retriever --out=bank

Its captions are those of the config's training split alone.
"""

from absl import flags

from maa_jax import command


def define_flags() -> None:
    """Defines the flags; by this module as a program alone, or two programs' flags would clash."""
    command.define_config_flag()
    flags.DEFINE_string("out", None, "Folder for the contexts or the bank.", required=True)
    flags.DEFINE_string("retriever", None, "Model folder of a retriever; makes a bank.")


def embed(config, out: str) -> int:
    """Writes the contexts of a run's captions, this process's share of them.

    Args:
        config: a config of the diffusion stage.
        out: folder for the contexts.

    Returns:
        How many were written.

    Raises:
        ValueError: training would make captions that no one can compute before it runs.
    """
    if config.data.reprogram.events:
        raise ValueError(
            f"config.data.reprogram.events={config.data.reprogram.events!r}: reprogramming makes "
            "new captions as training runs, whose contexts cannot be computed before; set it to ''"
        )
    import jax
    import jax.numpy as jnp

    from maa_jax.data import datasets, text_embeddings
    from maa_jax.encoders import text

    folder = text.find(config.text_encoder)
    text = text.TextConditioner.from_folder(folder, dtype=jnp.dtype(config.dtype))
    params, encode = jax.device_put(text.params), jax.jit(text.encode)
    captions = ["", *config.summary.prompts]
    for split in (config.data.split, config.data.eval_split):
        captions += datasets.captions(config.data, split)
    return text_embeddings.write(
        out,
        captions,
        lambda batch: encode(params, text.tokenize(batch)).astype(jnp.float32),
        text_encoder=config.text_encoder,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def embed_bank(config, retriever: str, out: str) -> int:
    """Writes a bank of a run's training captions, this process's share of it.

    Args:
        config: any stage's; its `data` is read.
        retriever: model folder of the retriever.
        out: folder for the bank.

    Returns:
        How many captions were written.
    """
    from maa_jax.data import datasets
    from maa_jax.enhancement import retrieval

    captions = datasets.captions(config.data, config.data.split)
    return retrieval.write_bank(retriever, captions, out)


def main() -> None:
    """Runs the program that this module's docstring describes."""
    from maa_jax import devices

    devices.initialize()
    f = flags.FLAGS
    if f.retriever:
        count, what = embed_bank(f.config, f.retriever, f.out), "captions"
    else:
        count, what = embed(f.config, f.out), "contexts"
    print(f"{count} {what} in {f.out}")


def run() -> None:
    """Entry point of `python -m maa_jax.embed` and of `maa-embed`."""
    command.run(main, define_flags)


if __name__ == "__main__":
    run()
