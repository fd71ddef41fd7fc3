"""Inpainting: a diffusion model that fills gaps of recordings (paper section 4.2, Table 2).

    python -m maa_jax.train --config=configs/inpainting.py --workdir=runs/inpainting \
        --config.init_from=models/t2a

It goes on from a text-to-audio model, whose U-Net takes 5 more channels: the latents of the masked
recording, and the mask. `--config.init_from=` begins from random weights.

Arguments: none, the paper's U-Net and its thick masks; `thin`, `medium`, `thick`, `frames30`,
`frames50` and `frames70`, the rows of Table 2; `demo` and `runlocal` as in common.py; `bundled`,
from the model in the package, all six kinds of masks.

Where it departs from the authors' released model, on purpose: the text stays a condition, and a
tenth of the masks cover all, so that the same model makes whole sounds; the schedule and the
latents' scale are those of the text-to-audio model.
"""

import functools

from maa_jax.configs import common, t2a
from maa_jax.data.masks import MASKS


def get_config(arg: str | None = None):
    """Returns the config of an argument; see the module's docstring."""
    rows = {name: functools.partial(row, name) for name in MASKS}
    return common.pick(arg, full=full, demo=demo, runlocal=runlocal, bundled=bundled, **rows)()


def full():
    config = _fills_gaps(t2a.full())
    config.total_steps = 200_000
    return config


def row(mask: str):
    """Returns a row of Table 2, trained with one kind of mask."""
    config = full()
    config.masks.names = (mask,)
    return config


def bundled():
    config = _fills_gaps(common.small_run(t2a.bundled(), steps=2_000))
    config.masks.names = MASKS
    config.init_from = config.autoencoder = config.text_encoder = config.vocoder = "bundled"
    config.data.reprogram.events = ""
    config.optimizer.base_lr = 5e-4
    config.optimizer.cosine_steps = config.total_steps
    return config


def demo():
    config = _fills_gaps(t2a.demo())
    config.init_from = config.autoencoder = config.text_encoder = config.vocoder = "bundled"
    return config


def runlocal():
    config = _fills_gaps(t2a.runlocal())
    config.masks.names = ("frames30",)
    return config


def _fills_gaps(config):
    """Turns a config of t2a into one of this stage."""
    config.stage = "inpainting"
    config.unet.in_channels = 2 * config.unet.out_channels + 1  # the masked latents, the mask
    config.masks = common.block(names=("thick",), everything=0.1)
    return config
