"""CLAP: a joint embedding space of sounds and sentences (paper sections 3.3 and 5.2).

Its text tower conditions the denoiser.

    python -m maa_jax.train --config=configs/clap.py --workdir=runs/clap \
        --config.tokenizer=models/bert-base-uncased

Arguments: none, BERT-base and PANNs' Cnn14 at 16 kHz with a shared space of 1024 dimensions; `demo`
and `runlocal` as in common.py; `bundled`, the CLAP inside the package, with a vocabulary built from
the training captions. To start from published weights, give folders with config.json and
model.safetensors in `config.init_from.text_encoder` and `config.init_from.audio_encoder`.
"""

from maa_jax.configs import common


def get_config(arg: str | None = None):
    """Returns the config of an argument: none, demo, runlocal or bundled."""
    return common.pick(arg, full=full, demo=demo, runlocal=runlocal, bundled=bundled)()


def full():
    config = common.base("clap")
    config.batch_size = 128
    config.total_steps = 100_000
    config.tokenizer = "models/bert-base-uncased"  # a folder, or "captions"
    with config.ignore_type():  # a folder for each tower
        config.init_from = common.block(text_encoder="", audio_encoder="")
    config.augment = common.block(gain_db=0.0, shift=0.0)
    config.clap = common.block(
        embedding_size=1024,
        dropout=0.5,
        text_encoder=common.bert_base(),
        audio_encoder=common.panns(common.CNN14, num_classes=527, head_dropout=0.5),
    )
    config.optimizer.base_lr = 1e-4
    config.optimizer.warmup_steps = 2_000
    config.optimizer.weight_decay = 0.01
    return config


def bundled():
    """The CLAP in the package."""
    config = common.small_run(full(), steps=2_000)
    common.bundled_data(config, weight=25)
    config.batch_size = 64
    config.data.samples = 65_536
    config.tokenizer = "captions"
    config.augment = common.block(gain_db=3.0, shift=0.02)
    config.clap.embedding_size = 128
    config.clap.dropout = 0.0
    common.shrink_bert(config.clap.text_encoder)
    common.shrink_panns(config.clap.audio_encoder)
    config.clap.audio_encoder.num_classes, config.clap.audio_encoder.head_dropout = 18, 0.0
    config.optimizer.base_lr = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.cosine_steps = config.total_steps
    config.optimizer.clip_norm = 1.0
    return config


def demo():
    config = common.demo_run(bundled(), steps=100)
    config.batch_size = 32
    config.optimizer.warmup_steps = 50
    return config


def runlocal():
    config = common.local_run(bundled(), steps=2)
    config.optimizer.warmup_steps = 50
    config.batch_size = 2
    config.data.samples = 16_384
    config.clap.audio_encoder.channels = (4, 8)
    config.clap.text_encoder.num_hidden_layers = 1
    return config
