"""The spectrogram autoencoder's stage (paper section 3.4, Table 6; losses as in the release).

Reconstruction (L1), a slight pull of the latents to a unit Gaussian, and, from a given step on, an
adversary on the mel images. The adversary's gradient is scaled to the reconstruction's at the
decoder's last layer (Esser et al. 2021, "Taming transformers", equation 7).
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx

from maa_jax.audio import mel as mel_lib
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import save_index
from maa_jax.models import autoencoder, discriminators
from maa_jax.models.layers import conv2d
from maa_jax.training import optim, state
from maa_jax.training.metrics import spectrogram_image

Tree = Any

# Bounds of the adaptive weight's ratio and of its denominator, as in latent diffusion.
_MAX_RATIO = 1e4
_MIN_NORM = 1e-4
_SUMMARIES = 4  # examples shown in TensorBoard

_DISCRIMINATORS = {
    "multi_window": (discriminators.MultiWindowDiscriminator, discriminators.MultiWindowConfig),
    "patch": (discriminators.PatchDiscriminator, discriminators.PatchConfig),
}


class AutoencoderStage:
    """Trains `vae` against `discriminator`.

    The config's keys beside those of every stage:
        autoencoder: fields of AutoencoderConfig.
        kl_weight: of the divergence, summed over a latent, beside absolute errors summed over a
            mel image.
        discriminator: `name`, "multi_window" (paper) or "patch" (release); a block of that name
            with the fields of its config; `start`, the step from which it is trained and felt;
            `weight` of the adversarial loss; `r1_weight` of the gradient penalty on recordings.
    """

    def __init__(self, config: ml_collections.ConfigDict, *, steps_per_epoch: int):
        """Defines both networks; no weights.

        Raises:
            ValueError: for an unknown discriminator, or clips that the networks cannot take.
        """
        self.config = config
        self.mel = mel_lib.MelConfig(**config.mel)
        self.vae_config = autoencoder.AutoencoderConfig(**config.autoencoder)
        name, dtype = config.discriminator.name, jnp.dtype(config.dtype)
        if name not in _DISCRIMINATORS:
            raise ValueError(
                f"config.discriminator.name={name!r}: choose from {', '.join(_DISCRIMINATORS)}."
            )
        network, sizes = _DISCRIMINATORS[name]
        sizes = sizes(**config.discriminator[name])
        self._check_sizes()
        self._makes = {
            "vae": lambda rngs: autoencoder.Autoencoder(
                self.vae_config, dtype=dtype, remat=config.remat, rngs=rngs
            ),
            "discriminator": lambda rngs: network(sizes, dtype=dtype, rngs=rngs),
        }
        self._graphs = {name: state.define(make) for name, make in self._makes.items()}
        tx = optim.make_optimizer(config.optimizer, config.batch_size, steps_per_epoch)
        self._txs = dict.fromkeys(self._makes, tx)
        self.prepare_text = None

    def _check_sizes(self) -> None:
        frames, factor = self.config.data.samples // self.mel.hop_length, self.vae_config.downscale
        if frames % factor:
            step = factor * self.mel.hop_length
            raise ValueError(
                f"config.data.samples={self.config.data.samples} are {frames} frames, which the "
                f"autoencoder cannot divide by {factor}: choose a multiple of {step}."
            )
        if self.mel.n_mels % factor:
            raise ValueError(
                f"config.mel.n_mels={self.mel.n_mels}: the autoencoder needs a multiple of "
                f"{factor}."
            )

    def load_frozen(self) -> Tree:
        """Returns {}: this stage reads no other network."""
        return {}

    def start_weights(self) -> dict[str, Tree]:
        """Returns the autoencoder to go on from, {} for none."""
        return networks.start_weights(self.config.init_from, "vae", self.vae_config)

    def init(self, key: jax.Array) -> state.TrainState:
        """Returns the state of step 0."""
        averaged = ("vae",) if self.config.ema_decay else ()
        return state.start(self._makes, self._txs, averaged, key)

    def _image(self, audio: jax.Array) -> jax.Array:
        """Returns mel images [b, n_mels, frames, 1] of waveforms [b, samples]."""
        return mel_lib.log_mel(audio, self.mel).swapaxes(1, 2)[..., None]

    def train_step(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> tuple[state.TrainState, dict[str, jax.Array]]:
        """One step of both networks; the discriminator rests until its start."""
        del frozen
        active = train.step >= self.config.discriminator.start

        def loss_fn(params, batch, key):
            key_z, key_adversary = jax.random.split(key)
            image = self._image(batch["audio"])
            vae = state.merge(self._graphs["vae"], params["vae"])
            mean, logvar = vae.encode(image)
            z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key_z, mean.shape)
            features = vae.decoder.features(vae.post_quant_conv(z))
            fake = vae.decoder.conv_out(features).astype(jnp.float32)

            l1, kl = _l1(image, fake).mean(), _kl(mean, logvar).mean()
            loss = self._plain_loss(image, l1, kl)
            inputs = params, train.extra["discriminator"], image, fake, features, key_adversary
            scores, slopes, extra = self._adversary(active, *jax.lax.stop_gradient(inputs))
            # The adversary's part enters as a linear term with exactly its gradients, which are
            # then formed once for the weight and the update, and not at all before the start.
            linear = optax.tree.vdot(
                slopes, {"fake": fake, "discriminator": params["discriminator"]}
            )
            aux = {"l1": l1, "kl": kl, **scores, "extra": extra}
            return loss + linear - jax.lax.stop_gradient(linear), aux

        grad_fn = optim.accumulated_grad(loss_fn, self.config.accumulate)
        (loss, aux), grads = grad_fn(train.params, batch, key)
        update = lambda name: optim.update(
            self._txs[name], grads[name], train.params[name], train.opt[name]
        )
        vae, vae_opt = update("vae")
        discriminator, discriminator_opt = jax.lax.cond(
            active,
            lambda: update("discriminator"),
            lambda: (train.params["discriminator"], train.opt["discriminator"]),
        )
        params = {"vae": vae, "discriminator": discriminator}
        opt = {"vae": vae_opt, "discriminator": discriminator_opt}
        extra = {"discriminator": aux.pop("extra")}
        new = state.advance(train, params, opt, self.config.ema_decay, extra)
        return new, {"loss": loss, **aux}

    def _plain_loss(self, image: jax.Array, l1: jax.Array, kl: jax.Array) -> jax.Array:
        """Returns latent diffusion's loss without the adversary, a pixel."""
        return l1 + self.config.kl_weight * kl / image[0].size

    def _adversary(self, active, params, extra, image, fake, features, key):
        """Returns scalars, gradients {"fake", "discriminator"} and the discriminator's state.

        All zero, and nothing computed, unless `active`.
        """

        def play():
            key_generator, key_discriminator = jax.random.split(key)

            def judge(params, image, key):
                return discriminate(self._graphs["discriminator"], params, extra, image, key)

            def generator_loss(fake):
                logits, _ = judge(params["discriminator"], fake, key_generator)
                return -_mean(x.mean() for x in logits)

            def discriminator_loss(params):
                real = lambda image: judge(params, image, key_discriminator)
                logits_real, pull, new_extra = jax.vjp(real, image, has_aux=True)
                (slope,) = pull([jnp.ones_like(x) for x in logits_real])
                r1 = jnp.square(slope).mean()
                logits_fake, _ = judge(params, fake, key_discriminator)
                loss = _mean(map(hinge_loss, logits_real, logits_fake))
                scores = {
                    "discriminator_loss": loss,
                    "r1": r1,
                    "logits_real": _mean(x.mean() for x in logits_real),
                    "logits_fake": _mean(x.mean() for x in logits_fake),
                }
                loss = loss + self.config.discriminator.r1_weight * r1
                return loss, (scores, new_extra)

            g_loss, slope = jax.value_and_grad(generator_loss)(fake)
            kernel = params["vae"]["decoder"]["conv_out"]["kernel"]
            weight = self.config.discriminator.weight * adaptive_weight(
                features, kernel, _sum_l1_slope(image, fake), slope
            )
            grads, (scores, new_extra) = jax.grad(discriminator_loss, has_aux=True)(
                params["discriminator"]
            )
            scores |= {"generator_loss": g_loss, "adversary_weight": weight}
            slopes = {"fake": weight / image[0].size * slope, "discriminator": grads}
            return scores, slopes, new_extra

        def rest():
            scores, slopes, _ = jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(play)
            )
            return scores, slopes, extra

        return jax.lax.cond(active, play, rest)

    def _reconstruct(self, train: state.TrainState, image: jax.Array):
        """Returns the posterior's mean and log-variance, and the reconstruction of the mean."""
        vae = state.merge(self._graphs["vae"], train.weights()["vae"])
        mean, logvar = vae.encode(image)
        return mean, logvar, vae.decode(mean)

    def eval_step(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns each example's losses [b], without the adversary, from the posterior's mean."""
        del frozen, key
        image = self._image(batch["audio"])
        mean, logvar, fake = self._reconstruct(train, image)
        l1, kl = _l1(image, fake), _kl(mean, logvar)
        return {"loss": self._plain_loss(image, l1, kl), "l1": l1, "kl": kl}

    def summarize(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns spectrograms of a few recordings and of their reconstructions."""
        del frozen, key
        image = self._image(batch["audio"][:_SUMMARIES])
        fake = self._reconstruct(train, image)[2]
        shown = lambda x: spectrogram_image(x[..., 0].swapaxes(1, 2), self.mel)
        return {"image/recording": shown(image), "image/reconstruction": shown(fake)}

    def export(self, params: Tree, extra: Tree, folder: str) -> None:
        """Writes `vae` into a model folder; the diffusion stage measures its scaling factor."""
        del extra
        networks.save_network(folder, "vae", self.vae_config, params["vae"])
        save_index(folder, mel=dataclasses.asdict(self.mel), sample_rate=self.mel.sample_rate)


def discriminate(
    graph: Any, params: Tree, extra: Tree, image: jax.Array, key: jax.Array
) -> tuple[list[jax.Array], Tree]:
    """Returns the logits of mel images [b, h, w, 1] and the discriminator's new state."""
    module = state.merge(graph, params, extra)
    outputs = module(image, rngs=nnx.Rngs(key))
    return [logits.astype(jnp.float32) for logits, _ in outputs], state.split(module)[1]


def hinge_loss(logits_real: jax.Array, logits_fake: jax.Array) -> jax.Array:
    """Returns the discriminator's hinge loss (the release's; the paper names none)."""
    return 0.5 * (jax.nn.relu(1 - logits_real).mean() + jax.nn.relu(1 + logits_fake).mean())


def adaptive_weight(
    features: jax.Array, kernel: jax.Array, slope: jax.Array, adversary_slope: jax.Array
) -> jax.Array:
    """Returns how much larger the reconstruction's gradient at the last layer is, up to 10,000.

    Args:
      features: [b, h, w, c], what the decoder's last convolution sees.
      kernel: [3, 3, c, 1], of that convolution.
      slope, adversary_slope: [b, h, w, 1], gradients of either loss to the reconstruction.
    """
    last = lambda kernel: conv2d(features, kernel.astype(features.dtype), padding=1)
    _, pull = jax.vjp(last, kernel)
    norm = lambda slope: jnp.linalg.norm(pull(slope.astype(features.dtype))[0])
    return jnp.clip(norm(slope) / (norm(adversary_slope) + _MIN_NORM), 0.0, _MAX_RATIO)


def _mean(values: Iterable[jax.Array]) -> jax.Array:
    return jnp.stack(list(values)).mean()


def _sum_l1_slope(image: jax.Array, fake: jax.Array) -> jax.Array:
    """Returns the gradient of the absolute errors summed over pixels, averaged over the batch."""
    return jnp.sign(fake - image) / len(image)


def _l1(image: jax.Array, fake: jax.Array) -> jax.Array:
    return jnp.abs(image - fake).mean((1, 2, 3))


def _kl(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """Returns the divergence from a unit Gaussian, summed over each latent, [b]."""
    return 0.5 * jnp.sum(jnp.square(mean) + jnp.exp(logvar) - 1 - logvar, (1, 2, 3))
