"""CLIP: a joint embedding space of pictures and sentences, for configs/v2a.py (paper section 4.3).

    python -m maa_jax.train --config=configs/clip.py:bundled --workdir=runs/clip \
        --config.data.folder=packages/tuxpaint-stamps-default --config.data.captions_file=stamps.csv
    python -m maa_jax.convert --from=workdir --workdir=runs/clip --out=models/clip

The dataset is a folder of pictures and a table of their captions (maa_jax/data/builders/
image_folder.py); tools/pictures.py makes such a table of a Debian package. The published CLIPs need
no training: OpenAI's load from the Hugging Face hub, OpenCLIP's too or by
`python -m maa_jax.convert --from=open_clip`.

Arguments: none, the sizes of ViT-B/32 and the paper's optimizer (Radford et al. 2021, Tables 18 and
19), whose batch is 32,768 on 256 GPUs; `bundled`, a small one for about a thousand pictures, with a
vocabulary built from the captions, as wide as `v2a:bundled` needs; `demo` and `runlocal` as in
common.py, on the same data.
"""

from maa_jax.configs import common
from maa_jax.models.clip import ClipConfig


def get_config(arg: str | None = None):
    """Returns the config of an argument: none, demo, runlocal or bundled."""
    return common.pick(arg, full=full, demo=demo, runlocal=runlocal, bundled=bundled)()


def full():
    config = common.base("clip")
    config.data.dataset = "image_folder"
    config.batch_size = 32_768
    config.total_steps = 390_000  # 32 epochs of 400 M pictures
    config.tokenizer = "models/clip-vit-base-patch32"  # a folder, or "captions"
    config.augment = common.block(crop=0.9)
    config.clip = common.fields_of(ClipConfig)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):  # the tokenizer's
        del config.clip.text_config[name]
    config.optimizer.base_lr = 5e-4
    config.optimizer.b2 = 0.98
    config.optimizer.warmup_steps = 2_000
    config.optimizer.cosine_steps = config.total_steps
    config.optimizer.weight_decay = 0.2
    return config


def bundled():
    config = common.small_run(full(), steps=2_000)
    config.batch_size = 64
    config.tokenizer = "captions"
    config.augment.crop = 0.7
    config.clip.projection_dim = 128
    text, vision = config.clip.text_config, config.clip.vision_config
    text.vocab_size = 2048
    for tower in (text, vision):
        tower.hidden_size, tower.intermediate_size = 128, 512
        tower.num_attention_heads = 4
    text.num_hidden_layers, vision.num_hidden_layers = 2, 4
    vision.image_size, vision.patch_size = 64, 8
    config.optimizer.base_lr = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.cosine_steps = config.total_steps
    config.optimizer.clip_norm = 1.0
    return config


def demo():
    config = common.demo_run(bundled(), steps=100)
    config.data.dataset = "image_folder"
    config.batch_size = 32
    config.optimizer.warmup_steps = 50
    return config


def runlocal():
    config = common.local_run(bundled(), steps=2)
    config.data.dataset = "image_folder"
    config.batch_size = 2
    config.clip.text_config.num_hidden_layers = config.clip.vision_config.num_hidden_layers = 1
    config.clip.vision_config.image_size = 16
    return config
