"""Sound from pictures and videos: latent diffusion under one CLIP embedding (paper section 4.3).

    python -m maa_jax.train --config=configs/v2a.py --workdir=runs/v2a \
        --config.autoencoder=models/autoencoder

The stage is that of t2a.py. In place of a sentence's token states the U-Net attends to one token,
the sentence's embedding in CLIP's joint space; in use, a picture's stands for it, or the mean of a
video's pictures. So it is trained on sound and text alone, and needs a CLIP with both towers.

Arguments: none, `NormGlobal` of Table 8: embeddings of unit length by OpenCLIP's ViT-H/14, FSD50K
with its labels as text (E.3), and the authors' U-Net of 104,356,612 parameters, 256 channels and
heads of 32 channels; `global`, the row whose embeddings are as CLIP gives them, as are those of
the row on AudioCaps, `--config.data.dataset=audiocaps`. `bundled`, `demo` and `runlocal` are as in
t2a.py, with the CLIP in models/clip that configs/clip.py trains.

A large CLIP's embeddings of all captions can be computed once, and FSD50K has few:

    python -m maa_jax.embed --config=configs/v2a.py --out=embeddings/v2a
    python -m maa_jax.train --config=configs/v2a.py --config.text_embeddings=embeddings/v2a ...

Where it departs from the authors' configuration (AIGC-Audio/AudioGPT,
text_to_audio/Make_An_Audio/configs/img_to_audio/img2audio_args.yaml): a moving average of the
weights is kept, and 20 % of the conditions are dropped, as in t2a.py. It has not been trained at
full size here.
"""

from maa_jax.configs import common, t2a


def get_config(arg: str | None = None):
    """Returns the config of an argument; see the module's docstring."""
    rows = {"global": global_}
    return common.pick(arg, full=full, demo=demo, runlocal=runlocal, bundled=bundled, **rows)()


def full():
    config = t2a.full()
    config.conditioning = "norm_global"
    config.text_encoder = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    config.data.dataset = "fsd50k"
    config.unet.block_out_channels = (256, 512)
    with config.ignore_type():  # one number in t2a.py
        config.unet.num_heads = (8, 16)
    config.unet.cross_attention_dim = 1024
    return config


def global_():
    config = full()
    config.conditioning = "global"
    return config


def _small(config):
    """Changes a small config of t2a.py, whose context is as wide as the small CLIP's embedding."""
    config.conditioning = "norm_global"
    config.text_encoder = "models/clip"
    return config


def bundled():
    return _small(t2a.bundled())


def demo():
    return _small(t2a.demo())


def runlocal():
    return _small(t2a.runlocal())
