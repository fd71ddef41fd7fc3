"""The captioner (paper section 3.2.1, Appendix E.2): captions for recordings without any.

    python -m maa_jax.train --config=configs/captioner.py --workdir=runs/captioner \
        --config.tokenizer=models/bert-base-uncased

Then with CIDEr as the reward (self-critical training), starting from the exported captioner:

    python -m maa_jax.convert --from=workdir --workdir=runs/captioner --out=models/captioner
    python -m maa_jax.train --config=configs/captioner.py:self_critical \
        --workdir=runs/self_critical --config.tokenizer=models/captioner/tokenizer \
        --config.init_from.captioner=models/captioner

Arguments: none, PANNs' Cnn10 with its front end at 16 kHz and a GRU of 512 units; `self_critical`;
`demo` and `runlocal` as in common.py; `bundled`, sizes for the recordings inside the package, with
a vocabulary built from their captions. To start from PANNs' weights, give a folder with config.json
and model.safetensors in `config.init_from.audio_encoder`; for the released Cnn10, whose input is at
32 kHz, set `config.captioner.encoder` to sample_rate 32000, n_fft 1024, hop_length 320, fmax 14000.
"""

from maa_jax.configs import common


def get_config(arg: str | None = None):
    """Returns the config of an argument; see the module's docstring."""
    return common.pick(
        arg, full=full, self_critical=self_critical, demo=demo, runlocal=runlocal, bundled=bundled
    )()


def full():
    config = common.base("captioner")
    config.batch_size = 64
    config.total_steps = 50_000
    config.tokenizer = "models/bert-base-uncased"  # a folder, or "captions"
    with config.ignore_type():  # a folder for the captioner, or for its encoder
        config.init_from = common.block(captioner="", audio_encoder="")
    config.loss = "cross_entropy"  # or self_critical
    config.label_smoothing = 0.1
    config.augment = common.block(gain_db=0.0, shift=0.0)
    config.captioner = common.block(
        vocab_size=30522,
        embedding_size=512,
        hidden_size=512,
        dropout=0.5,
        max_length=40,
        encoder=common.panns((64, 128, 256, 512)),
    )
    config.optimizer.base_lr = 5e-4
    config.optimizer.warmup_steps = 2_000
    config.optimizer.cosine_steps = config.total_steps
    config.optimizer.weight_decay = 1e-6
    config.optimizer.clip_norm = 1.0
    return config


def self_critical():
    """Self-critical training: of five sampled captions, each is compared with the other four.

    Starting from the captioner of `demo`, with its sizes, 150 steps with `loss="self_critical"` and
    a base_lr of 4e-4 raised the CIDEr-D of captions sampled for training recordings from 0.48 to
    0.69, of at most 10, in one minute on two cores of an AMD EPYC.
    """
    config = full()
    config.loss = "self_critical"
    config.total_steps = config.optimizer.cosine_steps = 20_000
    config.optimizer.base_lr = 5e-5
    return config


def bundled():
    """A captioner of the corpus that the model in the package is trained on."""
    config = common.small_run(full(), steps=1_500)
    common.bundled_data(config, weight=25)
    config.batch_size = 32
    config.data.samples = 65_536
    config.tokenizer = "captions"
    config.label_smoothing = 0.0
    config.augment = common.block(gain_db=3.0, shift=0.02)
    config.captioner.vocab_size = 2048
    config.captioner.embedding_size = config.captioner.hidden_size = 128
    config.captioner.dropout = 0.0
    config.captioner.max_length = 48
    common.shrink_panns(config.captioner.encoder)
    config.optimizer.base_lr = 2e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.cosine_steps = config.total_steps
    config.optimizer.clip_norm = 1.0
    return config


def demo():
    """The same for 500 steps, in two and a half minutes on one shared core of an AMD EPYC.

    It memorises the training captions (a loss of 0.60 per token; one of a recording's three
    captions is drawn), but only partly which recording each describes: greedy captions of training
    recordings reach a CIDEr-D of about 1.4, of at most 10, and those of the 13 validation
    recordings 0.17, at a loss of 6.1.
    """
    config = common.demo_run(bundled(), steps=500)
    config.captioner.max_length = 20
    config.optimizer.base_lr = 4e-3
    config.optimizer.warmup_steps = 50
    return config


def runlocal():
    config = common.local_run(bundled(), steps=2)
    config.batch_size = 2
    config.data.samples = 16_384
    config.captioner.encoder.channels = (4, 8)
    return config
