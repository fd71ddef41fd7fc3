"""A classifier of sounds, whose features scores compare: a Melception or a Cnn14 of one's own.

Melception as in v-iashin/SpecVQGAN (specvqgan/modules/losses/vggishish/train_melception.py), Cnn14
as in PANNs (Kong et al. 2020, section III), without its mixup and its balanced sampling.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx

from maa_jax import schema
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import save_index
from maa_jax.models.cnn14 import Cnn14, Cnn14Config
from maa_jax.models.inception import LEAST_FRAMES, Melception, MelceptionConfig
from maa_jax.stages.base import Scalars, SingleNetworkStage, Tree
from maa_jax.stages.contrastive import augment
from maa_jax.stages.images import matrix_image
from maa_jax.training.state import TrainState

# Fields in which the weights to start from may differ, as no shape depends on them.
_FREE = (
    *("samples", "first_frame", "frames", "published", "dropout", "block_dropout"),
    *("head_dropout", "stripes", "time_stripe", "mel_stripe"),
)


class AudioClassifierStage(SingleNetworkStage):
    """Trains `audio_classifier` on recordings with labels.

    Config keys, in addition to those of every stage:
      classifier: `name`, "melception" or "cnn14", and the fields of the config of each. A
        Melception learns the first label of a recording, a Cnn14 all.
      labels: names of the classes; () for all labels of the training and validation recordings,
        which the run then keeps in its config.
      init_from: model folder with a classifier to start from; "" for none.
      augment: `gain_db` and `shift`, as in CLAP's stage.
    """

    network = "audio_classifier"

    def __init__(self, config: ml_collections.ConfigDict):
        """Defines the network, without weights, and reads the labels unless they are given.

        Raises:
          ValueError: settings are inconsistent, or no recording has a label.
        """
        name = config.classifier.name
        config.labels = tuple(config.labels) or _labels(config)
        classes = {"num_classes": len(config.labels), "labels": config.labels}
        keys = {**config.classifier[name], **classes}
        self.sizes: MelceptionConfig | Cnn14Config
        samples, where = config.data.samples, f"config.classifier.{name}"
        if name == "melception":
            hop = config.classifier.melception.hop_length
            frames, least = samples // hop, LEAST_FRAMES * hop
            keys |= {"samples": samples, "first_frame": 0, "frames": max(frames, LEAST_FRAMES)}
            self.sizes = schema.build(MelceptionConfig, keys, where)
        else:
            self.sizes = schema.build(Cnn14Config, keys, where)
            least = self.sizes.min_samples
        if samples < least:
            raise ValueError(
                f"config.data.samples={samples} is too short for a {name}: give at least {least}"
            )
        if self.sizes.sample_rate != config.mel.sample_rate:
            raise ValueError(
                f"{where}.sample_rate={self.sizes.sample_rate}, but recordings are at "
                f"config.mel.sample_rate={config.mel.sample_rate}: make them equal"
            )
        dtype = jnp.dtype(config.dtype)
        kind: Any = Melception if name == "melception" else Cnn14
        super().__init__(config, lambda rngs: kind(self.sizes, dtype=dtype, rngs=rngs))

    def load_frozen(self) -> Tree:
        """Returns the classes of the recordings of `train` and of `validation`."""
        splits = {"train": self.config.data.split, "validation": self.config.data.eval_split}
        return {name: _targets(self.config, split) for name, split in splits.items()}

    def start_weights(self) -> dict[str, Tree]:
        """Returns the classifier to start from, {} for none."""
        return networks.start_weights(self.config.init_from, self.network, self.sizes, free=_FREE)

    def loss(
        self, params: Tree, extra: Tree, frozen: Tree, batch: Tree, key: jax.Array
    ) -> tuple[jax.Array, tuple[Scalars, Tree]]:
        """Returns the mean of the examples' losses; see `scores`."""
        key_augment, key_dropout = jax.random.split(key)
        network, rngs = self.merge(params, extra), nnx.Rngs(dropout=key_dropout)
        audio = augment(batch["audio"], key_augment, **self.config.augment)
        logits = network(audio, use_running_average=False, rngs=rngs)["logits"]
        found = self.scores(logits, frozen["train"][batch["index"]])
        means = {name: value.mean() for name, value in found.items()}
        return means.pop("loss"), (means, self.split_extra(network))

    def eval_step(self, train: TrainState, frozen: Tree, batch: Tree, key: jax.Array) -> Scalars:
        """Returns the scores of each example, [b]; see `scores`."""
        del key
        return self.scores(self._logits(train, batch), frozen["validation"][batch["index"]])

    def scores(self, logits: jax.Array, classes: jax.Array) -> Scalars:
        """Returns each example's loss and score, [b].

        Of a Melception: the cross entropy of the first class, and `accuracy`, whether it is the
        most likely one. Of a Cnn14: the mean binary cross entropy of all classes, and
        `average_precision`, the mean precision at the places of a recording's classes when all are
        ranked by likelihood; PANNs' mAP ranks the recordings of each class instead.

        Args:
          logits: logits [b, classes].
          classes: classes of each example, the first one first, [b, most], -1 for none.
        """
        if isinstance(self.sizes, MelceptionConfig):
            first = classes[:, 0]
            return {
                "loss": optax.softmax_cross_entropy_with_integer_labels(logits, first),
                "accuracy": (jnp.argmax(logits, -1) == first).astype(jnp.float32),
            }
        there = jax.nn.one_hot(classes, logits.shape[-1]).max(axis=1)  # -1 has no one
        ranked = jnp.take_along_axis(there, jnp.argsort(-logits, axis=-1), axis=-1)
        precision = jnp.cumsum(ranked, axis=-1) / jnp.arange(1, 1 + ranked.shape[-1])
        return {
            "loss": optax.sigmoid_binary_cross_entropy(logits, there).mean(axis=-1),
            "average_precision": (ranked * precision).sum(axis=-1) / ranked.sum(axis=-1),
        }

    def summarize(
        self, train: TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns the likelihoods of the classes, in columns, for the examples in rows."""
        del frozen, key
        one = isinstance(self.sizes, MelceptionConfig)
        likelihoods = (nnx.softmax if one else nnx.sigmoid)(self._logits(train, batch))
        return {"image/classes": matrix_image(likelihoods[None])}

    def _logits(self, train: TrainState, batch: Tree) -> jax.Array:
        return self.merge(train.weights(), train.extra)(batch["audio"])["logits"]

    def export(self, params: Tree, extra: Tree, folder: pathlib.Path) -> None:
        """Writes `audio_classifier` into a model folder."""
        tree = nnx.to_pure_dict(nnx.state(self.merge(params, extra)))
        networks.save_network(folder, self.network, self.sizes, tree)
        save_index(folder)


def _labels(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Returns all labels of the training and validation recordings, sorted."""
    from maa_jax.data import datasets  # nothing else in the stage needs a dataset

    found: set[str] = set()
    for split in (config.data.split, config.data.eval_split):
        for example in datasets.metadata(config.data, split):
            found.update(example["labels"])
    if not found:
        raise ValueError(
            f"config.data.dataset={config.data.dataset!r}: its recordings have no labels; take a "
            "dataset that has some"
        )
    return tuple(sorted(found))


def _targets(config: ml_collections.ConfigDict, split: str) -> np.ndarray:
    """Returns the classes of a split's recordings, [n, most], int32, -1 where there are fewer.

    Raises:
      ValueError: a recording has no label, or one that is no class.
    """
    from maa_jax.data import datasets

    places = {label: i for i, label in enumerate(config.labels)}
    rows = []
    for example in datasets.metadata(config.data, split):
        unknown = [label for label in example["labels"] if label not in places]
        if unknown or not example["labels"]:
            what = f"the label {unknown[0]!r}, which config.labels lacks" if unknown else "no label"
            raise ValueError(
                f"recording {example['id']} of split {split!r} has {what}; leave its dataset out"
                " of config.data, or name all classes"
            )
        rows.append([places[label] for label in example["labels"]])
    table = np.full((len(rows), max(map(len, rows))), -1, np.int32)
    for row, classes in zip(table, rows, strict=True):
        row[: len(classes)] = classes
    return table
