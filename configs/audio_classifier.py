"""A classifier of sounds of one's own, whose features scores compare (FID, KL, inception score).

    python -m maa_jax.train --config=configs/audio_classifier.py --workdir=runs/melception

It learns the labels of any dataset that has some; `config.labels` names them where not all of the
training and validation recordings are wanted as classes. Scores by such weights carry their hash:
they are not those of the published networks.

Arguments: none, a Melception of full size with the published front end at the 16 kHz of the
recordings, which learns the first label of each; `cnn14`, PANNs' Cnn14 at 16 kHz, which learns all;
`demo` and `runlocal` as in common.py; `bundled`, a Melception of 0.4 M parameters for the corpus of
the model in the package.
"""

from maa_jax.configs import common


def get_config(arg: str | None = None):
    """Returns the config of an argument; see the module's docstring."""
    return common.pick(arg, full=full, cnn14=cnn14, demo=demo, runlocal=runlocal, bundled=bundled)()


def full():
    """SpecVQGAN's recipe, Adam at 3e-4, in larger batches."""
    config = common.base("audio_classifier")
    config.batch_size = 64
    config.total_steps = 200_000
    config.data.dataset = "audioset"
    config.labels = ()
    config.augment = common.block(gain_db=0.0, shift=0.0)
    config.classifier = common.block(
        name="melception",
        melception=common.block(
            sample_rate=16_000,
            n_fft=1024,
            hop_length=256,
            n_mels=80,
            fmin=125.0,
            fmax=7600.0,
            width=16,
            dropout=0.5,
        ),
        cnn14=common.panns(common.CNN14, head_dropout=0.5),
    )
    config.optimizer.base_lr = 3e-4
    return config


def cnn14():
    """PANNs' recipe: batches of 32 and a rate of 1e-3, for 600,000 steps."""
    config = full()
    config.classifier.name = "cnn14"
    config.batch_size = 32
    config.total_steps = 600_000
    config.optimizer.base_lr = 1e-3
    return config


def bundled():
    """A judge of the model in the package."""
    config = common.small_run(full(), steps=1_500)
    common.bundled_data(config, weight=25)
    config.data.samples = 65_536
    config.augment = common.block(gain_db=6.0, shift=0.0)
    config.classifier.melception.hop_length = 640
    config.classifier.melception.width = 2
    config.classifier.melception.dropout = 0.2
    common.shrink_panns(config.classifier.cnn14)
    config.ema_decay = 0.99
    config.optimizer.base_lr = 2e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.cosine_steps = config.total_steps
    return config


def demo():
    """The same for 150 steps on the 104 training recordings, in three and a half minutes.

    That was on one shared core of an AMD EPYC. Of the 13 validation recordings, in 18 classes, it
    names 8; of the training recordings 4 of 5.
    """
    config = common.demo_run(bundled(), steps=150)
    config.batch_size = 32
    config.optimizer.warmup_steps = 20
    return config


def runlocal():
    config = common.local_run(bundled(), steps=2)
    config.batch_size = 2
    config.data.samples = 16_384
    config.classifier.melception.width = 1
    config.classifier.cnn14.channels = (4, 8)
    return config
