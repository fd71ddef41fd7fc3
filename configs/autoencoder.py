"""The spectrogram autoencoder (paper section 3.4, Table 6; losses as in the release).

    python -m maa_jax.train --config=configs/autoencoder.py --workdir=runs/autoencoder

Arguments: none, the paper's 68,984,037 parameters against the multi-window discriminator; `demo`
and `runlocal` as in common.py; `bundled`, the autoencoder inside the package. The release's
PatchGAN is `--config.discriminator.name=patch`. The learning rate is the release's (and latent
diffusion's), 4.5e-6 times the batch: 7.2e-5 here, 1.44e-4 for the release's 8 GPUs and batches of
4. The paper gives none.

Where it departs from paper and release, or follows them to somewhere unexpected:

- The paper names the multi-window discriminator but no adversarial loss. Hinge loss, R1 and the
  adaptive weight are those that the release uses with its PatchGAN: neither source combines them
  with windows. A window begins at one frame for the whole batch.
- The "adaptive" weight hardly adapts, as in the release: it compares the L1 loss summed over pixels
  with the adversary's mean, so that their ratio is mostly at its cap of 1e4 (17 of 18 logged steps
  of two runs). With `discriminator.weight` the adversary then weighs 5,000 where a clip's L1 is
  summed over 49,920 pixels: 0.10 of a pixel's.
- Mels are log10 magnitudes, as in the release, and not scaled to [0, 1] (3.4).
"""

from maa_jax.configs import common


def get_config(arg: str | None = None):
    """Returns the config of an argument: none, demo, runlocal or bundled."""
    return common.pick(arg, full=full, demo=demo, runlocal=runlocal, bundled=bundled)()


def full():
    config = common.base("autoencoder")
    config.batch_size = 16
    config.total_steps = 500_000
    config.autoencoder = common.block(
        in_channels=1,
        out_channels=1,
        latent_channels=4,  # 32 and 128 in the paper's Table 7
        block_out_channels=(128, 256, 256, 512),
        layers_per_block=2,
        norm_num_groups=32,
    )
    config.kl_weight = 1e-6
    config.discriminator = common.block(
        name="multi_window",
        multi_window=common.block(windows=(32, 64, 128), channels=128, layers=3, dropout=0.25),
        patch=common.block(channels=64, layers=3),
        start=50_001,
        weight=0.5,
        r1_weight=5.0,
    )
    config.optimizer.base_lr = 4.5e-6
    config.optimizer.scale_lr = True
    config.optimizer.b1, config.optimizer.b2 = 0.5, 0.9
    return config


def bundled():
    """The autoencoder in the package, 2,988,345 parameters."""
    config = common.small_run(full(), steps=16_000)
    common.bundled_data(config, weight=30)
    config.batch_size = 4
    config.data.samples = 128 * 256
    config.ema_decay = 0.999
    config.autoencoder.latent_channels = 8  # 4 lose what tells one instrument from another
    config.autoencoder.block_out_channels = (16, 32, 64, 128)
    config.autoencoder.layers_per_block = 1
    config.autoencoder.norm_num_groups = 8
    config.discriminator.multi_window.windows = (32, 64)
    config.discriminator.multi_window.channels = 32
    config.discriminator.start = 11_000
    config.optimizer.base_lr = 1e-3
    config.optimizer.scale_lr = False
    config.optimizer.warmup_steps = 50
    config.optimizer.cosine_steps = config.total_steps
    config.optimizer.clip_norm = 1.0
    config.optimizer.b2 = 0.99
    return config


def demo():
    config = common.demo_run(bundled(), steps=80)
    config.batch_size = 8
    config.data.samples = 64 * 256
    config.ema_decay = 0.99
    config.discriminator.start = 64
    return config


def runlocal():
    config = common.local_run(bundled(), steps=2)
    config.batch_size = 2
    config.data.samples = 32 * 256
    config.autoencoder.block_out_channels = (8, 8, 16, 16)
    config.discriminator.multi_window.update(windows=(32,), channels=4, layers=1)
    config.discriminator.start = 1
    return config
