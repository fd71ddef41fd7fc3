"""The spectrogram autoencoder's stage (paper section 3.4, Table 6; losses as in the release).

L1 reconstruction loss, a small KL penalty, and, from a given step, an adversarial loss on the mel
images. The adversarial gradient is scaled to the reconstruction's at the decoder's last layer
(Esser et al. 2021, "Taming transformers", equation 7).
"""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from maa_jax import schema
from maa_jax.audio.mel import MelConfig
from maa_jax.checks import check_name
from maa_jax.latents import LatentCodec
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import save_index
from maa_jax.models import autoencoder
from maa_jax.models import mel_discriminators as discriminators
from maa_jax.models.layers import conv2d
from maa_jax.stages import gan
from maa_jax.stages.base import Scalars, Tree
from maa_jax.stages.images import spectrogram_image
from maa_jax.training.state import TrainState, merge, split

# Bounds of the adaptive weight's ratio and of its denominator, as in latent diffusion.
_MAX_RATIO = 1e4
_MIN_NORM = 1e-4
_SUMMARIES = 4  # examples shown in TensorBoard

_DISCRIMINATORS: dict[str, Any] = {
    "multi_window": (discriminators.MultiWindowDiscriminator, discriminators.MultiWindowConfig),
    "patch": (discriminators.PatchDiscriminator, discriminators.PatchConfig),
}


class AutoencoderStage(gan.GanStage):
    """Trains `vae` against `discriminator`.

    Config keys, in addition to those of every stage:
      autoencoder: fields of AutoencoderConfig.
      kl_weight: weight of the KL divergence summed over a latent, relative to absolute errors
        summed over a mel image.
      discriminator: `name`, "multi_window" (paper) or "patch" (release); a block of that name with
        the fields of its config; `start`, the first step at which it is trained and used; `weight`
        of the adversarial loss; `r1_weight` of the gradient penalty on recordings, the mean square
        of the gradient over what a discriminator sees.
    """

    can_remat = True

    def __init__(self, config: ml_collections.ConfigDict):
        """Defines both networks, without weights.

        Raises:
          ValueError: the discriminator is unknown, or the networks cannot take the clips.
        """
        name, dtype = config.discriminator.name, jnp.dtype(config.dtype)
        check_name("config.discriminator.name", name, _DISCRIMINATORS)
        discriminator, sizes = _DISCRIMINATORS[name]
        sizes = schema.build(sizes, config.discriminator[name], f"config.discriminator.{name}")
        self.vae_config = schema.build(
            autoencoder.AutoencoderConfig, config.autoencoder, "config.autoencoder"
        )
        makes = {
            "vae": lambda rngs: autoencoder.Autoencoder(
                self.vae_config, dtype=dtype, remat=config.remat, rngs=rngs
            ),
            "discriminator": lambda rngs: discriminator(sizes, dtype=dtype, rngs=rngs),
        }
        super().__init__(config, makes)
        mel = schema.build(MelConfig, config.mel, "config.mel")
        self.codec = LatentCodec(mel, self.vae_config, self._graphs["vae"])
        self.codec.check_clip(config.data.samples)

    def start_weights(self) -> dict[str, Tree]:
        """Returns the autoencoder to start from, {} for none."""
        return networks.start_weights(self.config.init_from, "vae", self.vae_config)

    def loss(
        self,
        params: Tree,
        extra: Tree,
        frozen: Tree,
        batch: Tree,
        key: jax.Array,
        active: jax.Array | bool = True,
    ) -> tuple[jax.Array, tuple[Scalars, Tree]]:
        """Returns the loss without the adversarial part, whose gradients are added to it."""
        del frozen
        key_z, key_gan = jax.random.split(key)
        image = self.codec.image(batch["audio"])
        vae = merge(self._graphs["vae"], params["vae"])
        mean, logvar = vae.encode(image)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key_z, mean.shape)
        features = vae.decoder.features(vae.post_quant_conv(z))
        fake = vae.decoder.conv_out(features)

        l1, kl = _l1(image, fake).mean(), _kl(mean, logvar).mean()
        loss = self._reconstruction_loss(image, l1, kl)
        inputs = params, extra["discriminator"], image, fake, features, key_gan
        scores, grads, disc_extra = self.gan_losses(active, *jax.lax.stop_gradient(inputs))
        values = {"fake": fake, "disc_params": params["discriminator"]}
        loss = gan.add_gradients(loss, values, grads)
        return loss, ({"l1": l1, "kl": kl, **scores}, {"discriminator": disc_extra})

    def _reconstruction_loss(self, image: jax.Array, l1: jax.Array, kl: jax.Array) -> jax.Array:
        """Returns latent diffusion's loss per pixel, without the adversarial part."""
        return l1 + self.config.kl_weight * kl / image[0].size

    def gan_losses(
        self,
        active: jax.Array | bool,
        params: Tree,
        extra: Tree,
        image: jax.Array,
        fake: jax.Array,
        features: jax.Array,
        key: jax.Array,
    ) -> gan.GanLosses:
        """Returns scalars, gradients and the discriminator's non-trainable variables.

        Args:
          active: whether the discriminator takes part; otherwise scalars and gradients are zero.
          params: {network: parameters}.
          extra: non-trainable variables of the discriminator.
          image: mel images of recordings [b, n_mels, frames, 1].
          fake: reconstructions of the mel images.
          features: input of the decoder's last convolution, [b, n_mels, frames, c].
          key: PRNG key of the windows and of dropout.
        """
        graph, disc_params = self._graphs["discriminator"], params["discriminator"]

        def crops(image, key):
            return merge(graph, disc_params, extra).crops(image, rngs=nnx.Rngs(dropout=key))

        def judge(disc_params, crops, key):
            module = merge(graph, disc_params, extra)
            outputs = module.judge(crops, rngs=nnx.Rngs(dropout=key))
            return [logits.astype(jnp.float32) for logits, _ in outputs], split(module)[1]

        def compute() -> gan.GanLosses:
            keys_generator, keys_discriminator = jax.random.split(key, (2, 2))

            def generator_loss(fake):
                logits, _ = judge(disc_params, crops(fake, keys_generator[0]), keys_generator[1])
                return -_mean(x.mean() for x in logits)

            def discriminator_loss(disc_params):
                key_crops, key_dropout = keys_discriminator
                real = lambda seen: judge(disc_params, seen, key_dropout)
                logits_real, vjp, new_extra = jax.vjp(real, crops(image, key_crops), has_aux=True)
                # Of each window alone, over its own pixels: a window weighs as much as an image.
                (grads,) = vjp([jnp.ones_like(x) for x in logits_real])
                r1 = _mean(jnp.square(grad).mean() for grad in grads)
                logits_fake, _ = judge(disc_params, crops(fake, key_crops), key_dropout)
                loss = _mean(map(hinge_loss, logits_real, logits_fake))
                scores = {
                    "discriminator_loss": loss,
                    "r1": r1,
                    "logits_real": _mean(x.mean() for x in logits_real),
                    "logits_fake": _mean(x.mean() for x in logits_fake),
                }
                loss = loss + self.config.discriminator.r1_weight * r1
                return loss, (scores, new_extra)

            g_loss, grad = jax.value_and_grad(generator_loss)(fake)
            kernel = params["vae"]["decoder"]["conv_out"]["kernel"]
            weight = self.config.discriminator.weight * adaptive_weight(
                features, kernel, _l1_gradient(image, fake), grad
            )
            disc_grads, (scores, new_extra) = jax.grad(discriminator_loss, has_aux=True)(
                disc_params
            )
            scores |= {"generator_loss": g_loss, "adversary_weight": weight}
            grads = {"fake": weight / image[0].size * grad, "disc_params": disc_grads}
            return scores, grads, new_extra

        return gan.when_active(active, compute, extra)

    def reconstruct(
        self, train: TrainState, image: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the posterior's mean and log-variance, and the reconstruction from the mean."""
        vae = merge(self._graphs["vae"], train.weights()["vae"])
        mean, logvar = vae.encode(image)
        return mean, logvar, vae.decode(mean)

    def eval_step(self, train: TrainState, frozen: Tree, batch: Tree, key: jax.Array) -> Scalars:
        """Returns the reconstruction losses [b] with the posterior's mean."""
        del frozen, key
        image = self.codec.image(batch["audio"])
        mean, logvar, fake = self.reconstruct(train, image)
        l1, kl = _l1(image, fake), _kl(mean, logvar)
        return {"loss": self._reconstruction_loss(image, l1, kl), "l1": l1, "kl": kl}

    def summarize(
        self, train: TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns spectrograms of a few recordings and of their reconstructions."""
        del frozen, key
        image = self.codec.image(batch["audio"][:_SUMMARIES])
        fake = self.reconstruct(train, image)[2]
        shown = lambda image: spectrogram_image(self.codec.mels(image), self.codec.mel)
        return {"image/recording": shown(image), "image/reconstruction": shown(fake)}

    def export(self, params: Tree, extra: Tree, folder: pathlib.Path) -> None:
        """Writes `vae` into a model folder; the diffusion stage measures its scaling factor."""
        del extra
        networks.save_network(folder, "vae", self.vae_config, params["vae"])
        mel = self.codec.mel
        save_index(folder, mel=dataclasses.asdict(mel), sample_rate=mel.sample_rate)


def hinge_loss(logits_real: jax.Array, logits_fake: jax.Array) -> jax.Array:
    """Returns the discriminator's hinge loss (as in the release; the paper states none)."""
    return 0.5 * (jax.nn.relu(1 - logits_real).mean() + jax.nn.relu(1 + logits_fake).mean())


def adaptive_weight(
    features: jax.Array, kernel: jax.Array, l1_grad: jax.Array, gan_grad: jax.Array
) -> jax.Array:
    """Returns the ratio of the L1 gradient's norm to the adversarial one's at the last layer.

    The ratio is at most 10,000, as in latent diffusion.

    Args:
      features: input of the decoder's last convolution, [b, h, w, c].
      kernel: weights of that convolution, [3, 3, c, 1].
      l1_grad: gradient of the L1 loss with respect to the reconstruction, [b, h, w, 1].
      gan_grad: gradient of the adversarial loss with respect to the same, [b, h, w, 1].
    """
    last = lambda kernel: conv2d(features.astype(kernel.dtype), kernel, padding=1)
    _, vjp = jax.vjp(last, kernel)
    norm = lambda grad: jnp.linalg.norm(vjp(grad)[0])
    return jnp.clip(norm(l1_grad) / (norm(gan_grad) + _MIN_NORM), 0.0, _MAX_RATIO)


def _mean(values: Iterable[jax.Array]) -> jax.Array:
    return jnp.stack(list(values)).mean()


def _l1_gradient(image: jax.Array, fake: jax.Array) -> jax.Array:
    """Returns the gradient of the absolute errors summed over pixels, averaged over the batch."""
    return jnp.sign(fake - image) / len(image)


def _l1(image: jax.Array, fake: jax.Array) -> jax.Array:
    return jnp.abs(image - fake).mean((1, 2, 3))


def _kl(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """Returns the KL divergence from a unit Gaussian, summed over each latent, [b]."""
    return 0.5 * jnp.sum(jnp.square(mean) + jnp.exp(logvar) - 1 - logvar, (1, 2, 3))
