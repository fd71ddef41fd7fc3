"""The classifier of events, which judges whether sounds are what their captions say.

    python -m maa_jax.train --config=configs/event_classifier.py --workdir=runs/event_classifier \
        --config.data.soundfont=SOUNDFONT

It hears how many events a sound has, the family of the instrument of each, and its register, and
learns from the truth of `general_midi`, from clips of their own with all combinations of
instrument, pattern and register: those that it judges are new to the model, and not to it. It is a
part of no model.

Arguments: none, PANNs' Cnn10; `bundled`, the one that judges the model in the package, of 0.5 M
parameters; `demo` and `runlocal` as in common.py. All need the soundfont: the recordings in the
package have no truth.
"""

from maa_jax.configs import common
from maa_jax.data.builders.general_midi.instruments import FAMILIES


def get_config(arg: str | None = None):
    """Returns the config of an argument: none, demo, runlocal or bundled."""
    return common.pick(arg, full=full, demo=demo, runlocal=runlocal, bundled=bundled)()


def full():
    config = common.base("event_classifier")
    config.batch_size = 64
    config.total_steps = 20_000
    config.data.dataset = "general_midi/100000x4.1-1-all"
    config.data.samples = 65_536
    config.augment = common.block(gain_db=6.0, shift=0.0)
    config.event_classifier = common.block(
        encoder=common.panns((64, 128, 256, 512)),
        families=FAMILIES,
        registers=("low", "middle", "high"),
        events=3,
        segments=6,
        hidden_size=512,
        dropout=0.5,
    )
    config.optimizer.base_lr = 1e-3
    config.optimizer.warmup_steps = 500
    config.optimizer.cosine_steps = config.total_steps
    config.optimizer.weight_decay = 0.01
    return config


def bundled():
    """The judge of the model in the package."""
    config = common.small_run(full(), steps=3_000)
    config.data.dataset = "general_midi/40000x4.1-1-all"
    common.shrink_panns(config.event_classifier.encoder)
    config.event_classifier.hidden_size = 256
    config.event_classifier.dropout = 0.2
    config.ema_decay = 0.99
    config.optimizer.base_lr = 2e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.cosine_steps = config.total_steps
    return config


def demo():
    config = common.small_run(bundled(), steps=200)
    config.optimizer.cosine_steps = config.total_steps
    return config


def runlocal():
    config = common.small_run(bundled(), steps=2)
    config.data.dataset = "general_midi/200x4.1"
    config.batch_size = 2
    config.event_classifier.encoder.channels = (4, 8)
    return config
