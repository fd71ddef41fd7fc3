"""The vocoder: mel to waveform (paper section 5.2; HiFi-GAN, Kong et al. 2020).

    python -m maa_jax.train --config=configs/vocoder.py --workdir=runs/vocoder

Arguments: none, HiFi-GAN V1 as in the paper, 13,936,130 parameters with weight norm, on segments of
8,192 samples; `bigvgan`, the release's BigVGAN of 112,231,250 against a multi-resolution
discriminator; `vocos`, Vocos (Siuzdak 2023) of 13,459,970, all at the rate of the frames; `demo`
and `runlocal` as in common.py; `bundled`, the vocoder inside the package.

Mels are compared in natural logarithm, as HiFi-GAN's weight of 45 means it, whatever logarithm the
network reads. The learning rate falls by 0.999 every 809 steps, HiFi-GAN's epoch, however few
recordings there are: to 4.5 % of its start in 2.5 M steps. BigVGAN: every 11,086 steps.

Where it departs from the paper and HiFi-GAN:

- The paper's HiFi-GAN is trained on VGGSound, for which there is no builder: give recordings of
  your own (docs/data.md). The default is the 104 training recordings in the package.
- Generator and discriminators take their steps at the same weights, in one pass; HiFi-GAN's
  discriminators step first. Recordings keep their level; HiFi-GAN scales each to a peak of 0.95.
"""

from maa_jax.configs import common


def get_config(arg: str | None = None):
    """Returns the config of an argument: none, bigvgan, vocos, demo, runlocal or bundled."""
    return common.pick(
        arg,
        full=full,
        bigvgan=bigvgan,
        vocos=vocos,
        demo=demo,
        runlocal=runlocal,
        bundled=bundled,
    )()


def full():
    config = common.base("vocoder")
    config.batch_size = 16
    config.total_steps = 2_500_000
    config.data.samples = 8_192
    config.dtype = "float32"  # waveforms need more than bfloat16's 8 bits
    config.generator = common.block(
        name="hifigan",
        hifigan=common.block(
            upsample_initial_channel=512,
            upsample_rates=(8, 8, 2, 2),
            upsample_kernel_sizes=(16, 16, 4, 4),
            resblock_kernel_sizes=(3, 7, 11),
            resblock_dilation_sizes=((1, 3, 5), (1, 3, 5), (1, 3, 5)),
        ),
        bigvgan=common.block(
            upsample_initial_channel=1536,
            upsample_rates=(4, 4, 2, 2, 2, 2),
            upsample_kernel_sizes=(8, 8, 4, 4, 4, 4),
            resblock_kernel_sizes=(3, 7, 11),
            resblock_dilation_sizes=((1, 3, 5), (1, 3, 5), (1, 3, 5)),
        ),
        vocos=common.block(n_fft=1024, dim=512, intermediate_dim=1536, num_layers=8),
    )
    config.discriminator = common.block(
        start=0,
        period=common.block(periods=(2, 3, 5, 7, 11), channels=(32, 128, 512, 1024, 1024)),
        scale=common.block(
            scales=3,
            channels=(128, 128, 256, 512, 1024, 1024, 1024),
            kernel_sizes=(15, 41, 41, 41, 41, 41, 5),
            strides=(1, 2, 2, 4, 4, 1, 1),
            groups=(1, 4, 16, 16, 16, 16, 1),
        ),
        resolution=common.block(
            resolutions=((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)), channels=32
        ),
    )
    config.mel_weight = 45.0
    config.spectral_weight = 0.0
    config.feature_weight = 2.0
    config.optimizer.base_lr = 2e-4
    config.optimizer.b1, config.optimizer.b2 = 0.8, 0.99
    config.optimizer.weight_decay = 0.01
    # HiFi-GAN's 0.999 an epoch, where LJSpeech's 12,950 training clips make 809 batches of 16.
    config.optimizer.decay_rate, config.optimizer.decay_steps = 0.999, 809
    return config


def bigvgan():
    config = full()
    config.generator.name = "bigvgan"
    config.batch_size = 32
    config.total_steps = 1_000_000
    config.optimizer.base_lr = 1e-4
    config.optimizer.decay_steps = 11_086  # an epoch of LibriTTS's 354,780 clips
    config.optimizer.clip_norm = 1_000.0
    return config


def vocos():
    config = full()
    config.generator.name = "vocos"
    config.data.samples = 16_384
    config.total_steps = 1_000_000
    config.optimizer.base_lr = 5e-4
    config.optimizer.b2 = 0.9
    config.optimizer.decay_rate = 1.0
    config.optimizer.cosine_steps = config.total_steps
    return config


def bundled():
    """The vocoder in the package: Vocos, 3,567,618 parameters, against small discriminators.

    HiFi-GAN V2, with a quarter of the parameters, takes several times as long a step on a CPU.
    """
    config = common.small_run(full(), steps=12_000)
    common.bundled_data(config, weight=30)
    config.batch_size = 8
    config.data.samples = 64 * 256  # Vocos sees 28 frames to either side of one
    config.ema_decay = 0.999
    config.generator.name = "vocos"
    config.generator.vocos.update(dim=256, intermediate_dim=768)
    config.discriminator.period.periods = (2, 3, 5)
    config.discriminator.period.channels = (8, 16, 32, 64)
    config.discriminator.resolution.resolutions = ((1024, 256, 1024),)
    config.discriminator.resolution.channels = 8
    config.discriminator.start = 8_000
    config.spectral_weight = 45.0
    config.optimizer.base_lr = 1e-3
    config.optimizer.decay_rate = 1.0
    config.optimizer.warmup_steps = 200
    config.optimizer.cosine_steps = config.total_steps
    return config


def demo():
    config = common.demo_run(bundled(), steps=120)
    config.ema_decay = 0.95
    config.optimizer.warmup_steps = 10
    config.discriminator.start = 96
    return config


def runlocal():
    config = common.local_run(bundled(), steps=2)
    config.batch_size = 2
    config.data.samples = 4_096
    config.generator.name = "hifigan"
    config.generator.hifigan.update(
        upsample_initial_channel=16,
        upsample_rates=(16, 16),
        upsample_kernel_sizes=(32, 32),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1, 3),),
    )
    config.discriminator.start = 1
    config.discriminator.period.update(periods=(2,), channels=(4, 8))
    config.discriminator.scale.update(
        channels=(4, 8), kernel_sizes=(15, 5), strides=(1, 4), groups=(1, 2)
    )
    return config
