"""The inpainting stage: a denoiser that fills gaps of recordings (paper section 4.2)."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from maa_jax.data.masks import MaskSource
from maa_jax.model_folder import networks
from maa_jax.stages.base import Tree
from maa_jax.stages.diffusion import DiffusionStage


class InpaintingStage(DiffusionStage):
    """Trains `unet` on noisy latents beside the latents of the masked recording, and the mask.

    Masks are drawn on the mels, whose marked cells become silence. The text stays, so that the
    model also fills gaps with what a prompt says.

    Config keys, in addition to those of the diffusion stage:
      masks: `names` of the kinds of masks, drawn in equal shares, and `everything`, the share of
        masks that cover all.
      init_from: model folder of a text-to-audio model, whose first convolution is widened with
        zeros, or of an inpainting model.
    """

    def __init__(self, config: ml_collections.ConfigDict):
        """Defines the networks, without weights; see `DiffusionStage`."""
        super().__init__(config)
        self.draw_mask = MaskSource(
            tuple(config.masks.names),
            config.masks.everything,
            self.codec.mel.n_mels,
            self.codec.frames(config.data.samples),
        )

    def in_channels(self, latent: int) -> int:
        """Returns the number of channels that the U-Net takes, for latents of so many."""
        return 2 * latent + 1

    def channels(self, extra: Tree, frozen: Tree, batch: Tree) -> jax.Array | None:
        """Returns the latents of the masked recordings and the mask; see `LatentCodec.masked`."""
        scale = extra["latents"]["scale"]
        return self.codec.masked(frozen["vae"], batch["audio"], batch["mask"], scale=scale)

    def no_channels(self, extra: Tree, frozen: Tree, count: int) -> jax.Array | None:
        """Returns the same for sounds of which nothing is known."""
        audio = jnp.zeros((1, self.config.data.samples))
        mask = jnp.ones((1, self.codec.mel.n_mels, self.codec.frames(audio.shape[1])), bool)
        found = self.codec.masked(frozen["vae"], audio, mask, scale=extra["latents"]["scale"])
        return jnp.repeat(found, count, axis=0)

    def start_weights(self) -> dict[str, Tree]:
        """Returns the denoiser to start from, {} for none."""
        found = networks.start_weights(
            self.config.init_from, "unet", self.unet_config, free=("in_channels",)
        )
        if found:
            first = found["unet"]["conv_in"]
            missing = self.unet_config.in_channels - first["kernel"].shape[2]
            first["kernel"] = np.pad(first["kernel"], ((0, 0), (0, 0), (0, missing), (0, 0)))
        return found
