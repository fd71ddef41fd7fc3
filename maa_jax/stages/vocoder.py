"""The vocoder's stage: HiFi-GAN's losses (Kong et al. 2020, section 2.4) for each generator.

Least-squares adversarial losses on the waveform, feature matching, and the L1 distance of mels, on
short segments whose mels are computed on the device. BigVGAN and Vocos are trained alike, with a
multi-resolution discriminator in place of the multi-scale one. The distance of spectra of three
resolutions (Yamamoto et al. 2020, "Parallel WaveGAN") may join.
"""

import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from maa_jax import schema
from maa_jax.audio.mel import (
    MelConfig,
    log_mel,
    log_spectral_distances,
    spectral_convergences,
)
from maa_jax.checks import check_name
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import save_index
from maa_jax.models import bigvgan, hifigan, vocos
from maa_jax.models import waveform_discriminators as discriminators
from maa_jax.models.layers1d import fold_weight_norm, split_weight_norm
from maa_jax.stages import gan
from maa_jax.stages.base import Scalars, Tree
from maa_jax.stages.images import spectrogram_image
from maa_jax.training.state import TrainState, merge

_SUMMARIES = 4  # examples shown and played in TensorBoard

_GENERATORS: dict[str, Any] = {
    "hifigan": (hifigan.HifiGan, hifigan.HifiGanConfig, ("period", "scale")),
    "bigvgan": (bigvgan.BigVGAN, bigvgan.BigVGANConfig, ("period", "resolution")),
    "vocos": (vocos.Vocos, vocos.VocosConfig, ("period", "resolution")),
}
_WEIGHT_NORM = ("hifigan", "bigvgan")  # generators that are trained with it
_DISCRIMINATORS: dict[str, Any] = {
    "period": (discriminators.MultiPeriodDiscriminator, discriminators.MultiPeriodConfig),
    "scale": (discriminators.MultiScaleDiscriminator, discriminators.MultiScaleConfig),
    "resolution": (
        discriminators.MultiResolutionDiscriminator,
        discriminators.MultiResolutionConfig,
    ),
}


class VocoderStage(gan.GanStage):
    """Trains `vocoder` against two discriminators.

    Config keys, in addition to those of every stage:
      generator: `name`, "hifigan" (paper), "bigvgan" (release) or "vocos" (quick), and a block of
        that name with the fields of its config; mel bands, sample rate, logarithm and Vocos's hop
        come from `config.mel`.
      discriminator: blocks `period`, `scale` (HiFi-GAN) and `resolution` (the others) with the
        fields of their configs; `start`, the first step at which they are trained and used.
      mel_weight: weight of the mels' L1 distance, in natural logarithm whatever `config.mel.log`,
        as in HiFi-GAN.
      spectral_weight: weight of the sum of `audio.mel.log_spectral_distances`, without which quiet
        parts are neglected, and `spectral_convergences`, without which loud ones become too quiet;
        HiFi-GAN has neither.
      feature_weight: weight of feature matching.
    """

    def __init__(self, config: ml_collections.ConfigDict):
        """Defines the networks, without weights.

        Raises:
          ValueError: the generator is unknown, or its sizes do not match the mels.
        """
        self.mel = schema.build(MelConfig, config.mel, "config.mel")
        name, dtype = config.generator.name, jnp.dtype(config.dtype)
        check_name("config.generator.name", name, _GENERATORS)
        generator, sizes, names = _GENERATORS[name]
        derived = {
            "model_in_dim": self.mel.n_mels,
            "sampling_rate": self.mel.sample_rate,
            "log": self.mel.log,
        }
        if name == "vocos":
            derived["hop_length"] = self.mel.hop_length
        where = f"config.generator.{name}"
        self.vocoder_config = schema.build(sizes, {**derived, **config.generator[name]}, where)
        self._normalized = name in _WEIGHT_NORM
        options = {"weight_norm": True} if self._normalized else {}

        def make_discriminator(name: str, rngs: nnx.Rngs) -> nnx.Module:
            discriminator, sizes = _DISCRIMINATORS[name]
            block = schema.build(sizes, config.discriminator[name], f"config.discriminator.{name}")
            return discriminator(block, dtype=dtype, rngs=rngs)

        makes = {
            "vocoder": lambda rngs: generator(
                self.vocoder_config, **options, dtype=dtype, rngs=rngs
            )
        }
        makes |= {name: functools.partial(make_discriminator, name) for name in names}
        super().__init__(config, makes)
        self._check_sizes()
        self.vocoder_config = dataclasses.replace(self.vocoder_config, mel=self.mel)

    def _check_sizes(self) -> None:
        hop = self.mel.hop_length
        if self.vocoder_config.hop_length != hop:
            raise ValueError(
                f"config.generator.{self.config.generator.name}.upsample_rates="
                f"{self.vocoder_config.upsample_rates} make "
                f"{self.vocoder_config.hop_length} samples per frame, but config.mel.hop_length is "
                f"{hop}: choose rates whose product is {hop}."
            )
        if self.config.data.samples % hop:
            raise ValueError(
                f"config.data.samples={self.config.data.samples} is not a whole number of frames: "
                f"choose a multiple of config.mel.hop_length={hop}."
            )

    def start_weights(self) -> dict[str, Tree]:
        """Returns the generator to start from, {} for none."""
        start = networks.start_weights(self.config.init_from, "vocoder", self.vocoder_config)
        return split_weight_norm(start) if self._normalized else start

    def loss(
        self,
        params: Tree,
        extra: Tree,
        frozen: Tree,
        batch: Tree,
        key: jax.Array,
        active: jax.Array | bool = True,
    ) -> tuple[jax.Array, tuple[Scalars, Tree]]:
        """Returns the generator's loss, to which the discriminators' gradients are added.

        HiFi-GAN's code updates the discriminators first; here both sides see the same weights.
        """
        del frozen, key
        audio = batch["audio"]
        mel = log_mel(audio, self.mel)
        fake = merge(self._graphs["vocoder"], params["vocoder"])(mel)
        distance = self.mel_distances(fake, mel).mean()
        disc_params = {name: params[name] for name in self.discriminators}
        disc_extra = {name: extra[name] for name in self.discriminators}
        inputs = jax.lax.stop_gradient((disc_params, fake))
        scores, grads, disc_extra = self.gan_losses(active, *inputs, disc_extra, audio)
        loss = self.config.mel_weight * distance
        if self.config.spectral_weight:
            scores["spectral_l1"] = log_spectral_distances(fake, audio).mean()
            scores["convergence"] = spectral_convergences(fake, audio).mean()
            both = scores["spectral_l1"] + scores["convergence"]
            loss = loss + self.config.spectral_weight * both
        loss = loss + scores["generator_loss"] + scores["feature_loss"]
        loss = gan.add_gradients(loss, {"fake": fake, "disc_params": disc_params}, grads)
        return loss, ({"mel_l1": distance, **scores}, disc_extra)

    def mel_distances(self, wav: jax.Array, mel: jax.Array) -> jax.Array:
        """Returns the L1 distances [b], in natural logarithm, of waveforms from log mels.

        Args:
          wav: waveforms [b, samples].
          mel: log mels [b, frames, n_mels] of `config.mel`.
        """
        unit = math.log(10) if self.mel.log == "log10" else 1.0
        return unit * jnp.abs(log_mel(wav, self.mel) - mel).mean((1, 2))

    def gan_losses(
        self,
        active: jax.Array | bool,
        params: Tree,
        fake: jax.Array,
        extra: Tree,
        audio: jax.Array,
    ) -> gan.GanLosses:
        """Returns scalars, gradients and the discriminators' non-trainable variables.

        Args:
          active: whether the discriminators take part; otherwise scalars and gradients are zero.
          params: {discriminator: parameters}.
          fake: generated waveforms [b, samples].
          extra: {discriminator: non-trainable variables}.
          audio: recordings [b, samples].
        """

        def compute() -> gan.GanLosses:
            outputs_real, vjp_real, extra_real = jax.vjp(
                lambda params: self.discriminate(params, extra, audio), params, has_aux=True
            )
            outputs_fake, vjp_fake, extra_fake = jax.vjp(
                lambda params, fake: self.discriminate(params, extra_real, fake),
                params,
                fake,
                has_aux=True,
            )
            d_loss, (grad_real, grad_fake) = jax.value_and_grad(discriminator_loss, (0, 1))(
                outputs_real, outputs_fake
            )
            disc_grads = jax.tree.map(jnp.add, vjp_real(grad_real)[0], vjp_fake(grad_fake)[0])

            def generator_losses(outputs_fake):
                g_loss = generator_loss(outputs_fake)
                features = self.config.feature_weight * feature_distance(outputs_real, outputs_fake)
                return g_loss + features, (g_loss, features)

            grad, (g_loss, features) = jax.grad(generator_losses, has_aux=True)(outputs_fake)
            scores = {
                "generator_loss": g_loss,
                "feature_loss": features,
                "discriminator_loss": d_loss,
            }
            return scores, {"fake": vjp_fake(grad)[1], "disc_params": disc_grads}, extra_fake

        return gan.when_active(active, compute, extra)

    def discriminate(
        self, params: Tree, extra: Tree, wav: jax.Array
    ) -> tuple[discriminators.Outputs, Tree]:
        """Returns all discriminators' (logits, features), and their non-trainable variables."""
        outputs, new_extra = [], {}
        for name in self.discriminators:
            found, new_extra[name] = gan.discriminate(
                self._graphs[name], params[name], extra[name], wav
            )
            outputs += found
        return outputs, new_extra

    def _reconstruct(self, train: TrainState, audio: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the mels of waveforms [b, samples], and the waveforms generated from them."""
        mel = log_mel(audio, self.mel)
        return mel, merge(self._graphs["vocoder"], train.weights()["vocoder"])(mel)

    def eval_step(self, train: TrainState, frozen: Tree, batch: Tree, key: jax.Array) -> Scalars:
        """Returns each example's distances [b]: of mels in natural logarithm, and of spectra."""
        del frozen, key
        mel, fake = self._reconstruct(train, batch["audio"])
        spectral = log_spectral_distances(fake, batch["audio"])
        return {"loss": self.mel_distances(fake, mel), "spectral_l1": spectral}

    def summarize(
        self, train: TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns sounds and spectrograms of a few recordings and of their reconstructions."""
        del frozen, key
        audio = batch["audio"][:_SUMMARIES]
        mel, fake = self._reconstruct(train, audio)
        return {
            "image/recording": spectrogram_image(mel, self.mel),
            "image/reconstruction": spectrogram_image(log_mel(fake, self.mel), self.mel),
            "audio/recording": audio[..., None],
            "audio/reconstruction": fake[..., None],
        }

    def export(self, params: Tree, extra: Tree, folder: pathlib.Path) -> None:
        """Writes `vocoder` into a model folder, its weight norm folded into plain kernels."""
        del extra
        folded = fold_weight_norm(params["vocoder"])
        networks.save_network(folder, "vocoder", self.vocoder_config, folded)
        save_index(folder, mel=dataclasses.asdict(self.mel), sample_rate=self.mel.sample_rate)


def discriminator_loss(real: discriminators.Outputs, fake: discriminators.Outputs) -> jax.Array:
    """Returns the least-squares loss: 1 for recordings, 0 for generated sounds (equation 1)."""
    losses = (
        jnp.square(1 - r).mean() + jnp.square(f).mean()
        for (r, _), (f, _) in zip(real, fake, strict=True)
    )
    return sum(losses, jnp.zeros(()))


def generator_loss(fake: discriminators.Outputs) -> jax.Array:
    """Returns the least-squares loss of the generator (equation 2)."""
    return sum((jnp.square(1 - logits).mean() for logits, _ in fake), jnp.zeros(()))


def feature_distance(real: discriminators.Outputs, fake: discriminators.Outputs) -> jax.Array:
    """Returns the L1 distance of the discriminators' features, summed over layers (equation 4)."""
    distances = (
        jnp.abs(a - b).mean()
        for (_, features_real), (_, features_fake) in zip(real, fake, strict=True)
        for a, b in zip(features_real, features_fake, strict=True)
    )
    return sum(distances, jnp.zeros(()))
