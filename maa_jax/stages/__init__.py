"""What is trained: one file a stage.

A stage is built from a config and offers what the one training loop needs:

    prepare_text                             captions to a tree of arrays [n, ...], or None
    load_frozen() -> tree                    weights of the networks that it only reads
    init(key) -> TrainState                  pure
    start_weights() -> {network: tree}       weights to begin with in the place of random ones
    prepare(state, frozen, batch, key)       on the first batches of a fresh run -> state
    train_step(state, frozen, batch, key)    pure -> (state, {name: scalar})
    eval_step(state, frozen, batch, key)     pure -> {name: [batch] values, one an example}
    summarize(state, frozen, batch, key)     pure -> {"image/NAME": [n, h, w, 1] in 0..1,
                                                      "audio/NAME": [n, samples, 1]}
    export(params, extra, folder)            writes its networks into a model folder
"""

import importlib

import ml_collections

from maa_jax.checks import nearest

_STAGES = {
    "autoencoder": "AutoencoderStage",
    "captioner": "CaptionerStage",
    "clap": "ClapStage",
    "diffusion": "DiffusionStage",
    "retriever": "RetrieverStage",
    "vocoder": "VocoderStage",
}
# Stages whose networks can compute activations twice instead of keeping them.
_WITH_REMAT = ("autoencoder", "diffusion")


def make_stage(config: ml_collections.ConfigDict, steps_per_epoch: int):
    """Returns the stage that `config.stage` names.

    Raises:
      ValueError: if there is no such stage.
    """
    if config.stage not in _STAGES:
        near = nearest(config.stage, _STAGES)
        raise ValueError(f"config.stage={config.stage!r} is no stage; did you mean {near!r}?")
    if config.remat and config.stage not in _WITH_REMAT:
        raise ValueError(
            f"config.remat=True: the {config.stage} stage keeps its activations, only "
            f"{' and '.join(_WITH_REMAT)} can recompute them; lower config.batch_size or raise "
            "config.accumulate to save memory"
        )
    module = importlib.import_module(f"maa_jax.stages.{config.stage}")
    return getattr(module, _STAGES[config.stage])(config, steps_per_epoch=steps_per_epoch)
