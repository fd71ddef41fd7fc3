"""The classifier of events: an independent judge of whether sounds are what their captions say."""

import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx

from maa_jax import schema
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import save_index
from maa_jax.models.event_classifier import EventClassifier, EventClassifierConfig
from maa_jax.stages.base import Scalars, SingleNetworkStage, Tree
from maa_jax.stages.contrastive import augment
from maa_jax.training.state import TrainState


class EventClassifierStage(SingleNetworkStage):
    """Trains `event_classifier` on recordings whose events are known.

    Config keys, in addition to those of every stage:
      event_classifier: fields of EventClassifierConfig.
      init_from: model folder with a classifier to start from; "" for none.
      augment: `gain_db` and `shift`, as in CLAP's stage.
    """

    network = "event_classifier"

    def __init__(self, config: ml_collections.ConfigDict):
        """Defines the network, without weights.

        Raises:
          ValueError: settings are inconsistent.
        """
        self.sizes = schema.build(
            EventClassifierConfig, dict(config.event_classifier), "config.event_classifier"
        )
        self.sizes.check_clip(config.data.samples)
        dtype = jnp.dtype(config.dtype)
        super().__init__(config, lambda rngs: EventClassifier(self.sizes, dtype=dtype, rngs=rngs))

    def load_frozen(self) -> Tree:
        """Returns the targets of the recordings of `train` and of `validation`."""
        splits = {"train": self.config.data.split, "validation": self.config.data.eval_split}
        return {name: self._targets(split) for name, split in splits.items()}

    def _targets(self, split: str) -> Tree:
        from maa_jax.data import truth  # nothing else in the stage needs a dataset

        found = truth.truths(self.config.data, split)
        sizes = self.sizes
        return truth.targets(found, sizes.families, sizes.registers, sizes.events)

    def start_weights(self) -> dict[str, Tree]:
        """Returns the classifier to start from, {} for none."""
        return networks.start_weights(self.config.init_from, self.network, self.sizes)

    def loss(
        self, params: Tree, extra: Tree, frozen: Tree, batch: Tree, key: jax.Array
    ) -> tuple[jax.Array, tuple[Scalars, Tree]]:
        """Returns the sum of the cross entropies of count, families and registers."""
        key_augment, key_dropout = jax.random.split(key)
        network, rngs = self.merge(params, extra), nnx.Rngs(dropout=key_dropout)
        audio = augment(batch["audio"], key_augment, **self.config.augment)
        logits = network(audio, use_running_average=False, rngs=rngs)
        losses = _losses(logits, _rows(frozen["train"], batch["index"]))
        scores = {name: loss.mean() for name, loss in losses.items()}
        total = sum(scores.values(), jnp.zeros(()))
        return total, (scores, self.split_extra(network))

    def eval_step(self, train: TrainState, frozen: Tree, batch: Tree, key: jax.Array) -> Scalars:
        """Returns each example's loss, and whether count and the first family are right, [b]."""
        del key
        logits = self.merge(train.weights(), train.extra)(batch["audio"])
        targets = _rows(frozen["validation"], batch["index"])
        right = lambda name, target: (jnp.argmax(name, -1) == target).astype(jnp.float32)
        return {
            "loss": sum(_losses(logits, targets).values(), jnp.zeros(())),
            "count_accuracy": right(logits["count"], targets["count"] - 1),
            "family_accuracy": right(logits["family"][:, 0], targets["family"][:, 0]),
        }

    def summarize(
        self, train: TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns nothing: there is nothing to see or hear."""
        del train, frozen, batch, key
        return {}

    def export(self, params: Tree, extra: Tree, folder: pathlib.Path) -> None:
        """Writes `event_classifier` into a model folder."""
        tree = nnx.to_pure_dict(nnx.state(self.merge(params, extra)))
        networks.save_network(folder, self.network, self.sizes, tree)
        save_index(folder)


def _rows(targets: Tree, index: jax.Array) -> Tree:
    return {name: table[index] for name, table in targets.items()}


def _losses(logits: Tree, targets: Tree) -> dict[str, jax.Array]:
    """Returns cross entropies [b]; those of events are summed over the events that there are."""
    entropy = optax.softmax_cross_entropy_with_integer_labels
    there = targets["family"] >= 0
    losses = {"count": entropy(logits["count"], targets["count"] - 1)}
    for name in ("family", "register"):
        each = entropy(logits[name], jnp.maximum(targets[name], 0))
        losses[name] = jnp.where(there, each, 0).sum(axis=1)
    return losses
