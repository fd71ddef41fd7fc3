"""Evaluators that a training run calls every so many steps, on sounds of its current state."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from maa_jax import evaluators
from maa_jax.audio.io import as_read
from maa_jax.data.config import DataConfig
from maa_jax.devices import replicated
from maa_jax.evaluators import base, sources
from maa_jax.evaluators.features import Networks
from maa_jax.training import sharding

Tree = Any
# (state, frozen, condition of b captions, index of the first) -> waveforms [b, samples]
Generate = Callable[[Any, Tree, Tree, jax.Array], jax.Array]

_SOUNDS = 8  # made at a time, at least


class PeriodicEvaluators:
    """Scores sounds that a run's state generates from validation captions."""

    def __init__(
        self,
        blocks: Mapping[str, Any],
        data: DataConfig,
        sample_rate: int,
        generate: Generate,
        prepare_text: Callable[[Sequence[str]], Tree],
        mesh: Mesh,
    ):
        """Reads the validation captions; no sound is generated yet.

        Args:
          blocks: `config.evaluators`, {name: fields of EvaluatorConfig}.
          data: datasets of the run.
          sample_rate: sample rate of the sounds in Hz.
          generate: pure function that generates the sounds; compiled here.
          prepare_text: function from captions to their condition.
          mesh: mesh of the run, over which every batch of captions is split.

        Raises:
          ValueError: an evaluator is unknown.
        """
        self._blocks = blocks
        self._evaluators = {
            name: evaluators.find(name)(
                Networks(
                    clap=block.clap,
                    melception=block.get("melception", ""),
                    cnn14=block.get("cnn14", ""),
                    vggish=block.get("vggish", ""),
                )
            )
            for name, block in blocks.items()
        }
        dataset = data.eval_dataset or data.parts()[0].dataset
        data = dataclasses.replace(data, dataset=dataset, split=data.eval_split)
        self._references = sources.recordings(data, data.samples)
        self._sample_rate, self._prepare_text, self._mesh = sample_rate, prepare_text, mesh
        self._batch_size = mesh.size * -(-_SOUNDS // mesh.size)
        self._generate = jax.jit(generate, out_shardings=replicated(mesh))

    def __call__(self, step: int, state: Any, frozen: Tree, *, last: bool) -> dict[str, float]:
        """Returns the scores that are due at a step, {"EVALUATOR/SCORE": value}.

        Every process of the run must call it, and gets the same scores.

        Args:
          step: number of the step.
          state: state of the run after the step.
          frozen: arrays that the stage reads and never changes.
          last: whether this is the run's last step, at which all evaluators are due.
        """
        scores: dict[str, float] = {}
        for name, block in self._blocks.items():
            if step % block.every == 0 or last:
                sounds = self._sounds(state, frozen, block.num_prompts)
                found = base.run([self._evaluators[name]], base.Inputs(sounds, self._references))
                scores |= {f"{name}/{score}": value for score, value in base.values(found).items()}
        return scores

    def _sounds(self, state: Any, frozen: Tree, count: int) -> base.Sounds:
        known = self._references
        prompts = sources.choose_prompts(known.captions, 1, count)
        captions = [caption for _, caption in prompts]
        share = self._batch_size // jax.process_count()

        def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            # All processes take part in each batch, and each keeps its own rows of it.
            for start in range(0, len(captions), self._batch_size):
                mine = start + jax.process_index() * share + np.arange(share)
                padded = [captions[i] for i in np.minimum(mine, len(captions) - 1)]
                condition = sharding.put_batch(self._prepare_text(padded), self._mesh)
                first = sharding.put_replicated(np.int32(start), self._mesh)
                wavs = jax.device_get(self._generate(state, frozen, condition, first))
                mine = mine[mine < len(captions)]
                if len(mine):
                    yield mine, as_read(wavs[mine - start])

        return base.Sounds(
            batches,
            self._sample_rate,
            known.samples,
            names=captions,
            captions=[[caption] for caption in captions],
            labels=[known.labels[recording] for recording, _ in prompts],
            recordings=[known.names[recording] for recording, _ in prompts],
        )
