"""The retriever of prompt enhancement: finds captions for recordings (section 3.2.1, Appendix E.2).

    python -m maa_jax.train --config=configs/retriever.py --workdir=runs/retriever \
        --config.tokenizer=models/bert-base-uncased \
        --config.init_from.text_encoder=models/bert-base-uncased

Arguments: none, BERT-base and MMT's transformer over Cnn14's features, trained as MMT was on
MSR-VTT (Gabeur et al. 2020, the authors' MSRVTT_jsfusion_trainval.json: margin 0.05, all negatives,
a learning rate that falls from 5e-5); `demo` and `runlocal` as in common.py; `bundled`, small
enough for the bundled recordings, with a vocabulary built from the training captions.
`config.init_from.audio_encoder` is PANNs' Cnn14 in a folder with config.json and model.safetensors;
the model folder of a CLAP trained here has both encoders. `python -m maa_jax.evaluate --model=DIR
--evaluators=recall --out=DIR` prints recall.
"""

from maa_jax.configs import common


def get_config(arg: str | None = None):
    """Returns the config of an argument: none, demo, runlocal or bundled."""
    return common.pick(arg, full=full, demo=demo, runlocal=runlocal, bundled=bundled)()


def full():
    config = common.base("retriever")
    config.batch_size = 128
    config.total_steps = 50_000
    config.tokenizer = "models/bert-base-uncased"  # a folder, or "captions"
    with config.ignore_type():  # a folder for each encoder
        config.init_from = common.block(text_encoder="", audio_encoder="")
    config.augment = common.block(gain_db=0.0, shift=0.0)
    config.margin = 0.05
    config.negatives = "all"  # or "hardest"
    config.retriever = common.block(
        text_encoder=common.bert_base(),
        audio_encoder=common.panns(common.CNN14),
        audio_transformer=common.block(
            hidden_size=512,  # also the width of the shared space
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=3072,
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
        ),
    )
    config.optimizer.base_lr = 5e-5
    config.optimizer.warmup_steps = 1_000
    config.optimizer.cosine_steps = config.total_steps
    return config


def bundled():
    """A retriever of the corpus that the model in the package is trained on."""
    config = common.small_run(full(), steps=1_500)
    common.bundled_data(config, weight=25)
    config.batch_size = 32
    config.data.samples = 65_536
    config.tokenizer = "captions"
    config.augment = common.block(gain_db=3.0, shift=0.02)
    config.margin = 0.2
    common.shrink_bert(config.retriever.text_encoder)
    common.shrink_panns(config.retriever.audio_encoder)
    transformer = config.retriever.audio_transformer
    transformer.hidden_size, transformer.intermediate_size = 128, 256
    transformer.num_hidden_layers = 2
    transformer.hidden_dropout_prob = transformer.attention_probs_dropout_prob = 0.0
    config.optimizer.base_lr = 1e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.cosine_steps = config.total_steps
    config.optimizer.clip_norm = 1.0
    return config


def demo():
    return common.demo_run(bundled(), steps=100)


def runlocal():
    config = common.local_run(bundled(), steps=2)
    config.batch_size = 2
    config.data.samples = 16_384
    config.retriever.audio_encoder.channels = (4, 8, 16)
    return config
