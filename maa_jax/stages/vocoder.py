"""The vocoder's stage: HiFi-GAN's losses (Kong et al. 2020, section 2.4) for either generator.

Least-squares adversaries on the waveform, matching of their features, and the mel's L1 distance,
on short segments whose mels are made on the device. BigVGAN trains alike, with a multi-resolution
discriminator in the place of the multi-scale one.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from maa_jax.audio import mel as mel_lib
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import save_index
from maa_jax.models import bigvgan, discriminators, hifigan
from maa_jax.models.layers1d import fold_weight_norm, split_weight_norm
from maa_jax.training import optim, state
from maa_jax.training.metrics import spectrogram_image

Tree = Any

_SUMMARIES = 4  # examples shown and played in TensorBoard

_GENERATORS = {
    "hifigan": (hifigan.HifiGan, hifigan.HifiGanConfig, ("period", "scale")),
    "bigvgan": (bigvgan.BigVGAN, bigvgan.BigVGANConfig, ("period", "resolution")),
}
_DISCRIMINATORS = {
    "period": (discriminators.MultiPeriodDiscriminator, discriminators.MultiPeriodConfig),
    "scale": (discriminators.MultiScaleDiscriminator, discriminators.MultiScaleConfig),
    "resolution": (
        discriminators.MultiResolutionDiscriminator,
        discriminators.MultiResolutionConfig,
    ),
}


class VocoderStage:
    """Trains `vocoder` against two discriminators.

    The config's keys beside those of every stage:
        generator: `name`, "hifigan" (paper) or "bigvgan" (release), and a block of that name with
            the fields of its config; mel bins, rate and logarithm come from `config.mel`.
        discriminator: blocks `period`, `scale` (HiFi-GAN) and `resolution` (BigVGAN) with the
            fields of their configs; `start`, the step from which they are trained and felt.
        mel_weight, feature_weight: of the mel's L1 distance and of feature matching.
    """

    def __init__(self, config: ml_collections.ConfigDict, *, steps_per_epoch: int):
        """Defines the networks; no weights.

        Raises:
            ValueError: for an unknown generator, or sizes that do not fit the mels.
        """
        self.config = config
        self.mel = mel_lib.MelConfig(**config.mel)
        name, dtype = config.generator.name, jnp.dtype(config.dtype)
        if name not in _GENERATORS:
            raise ValueError(
                f"config.generator.name={name!r}: choose from {', '.join(_GENERATORS)}."
            )
        network, sizes, self._adversaries = _GENERATORS[name]
        self.vocoder_config = sizes(
            model_in_dim=self.mel.n_mels,
            sampling_rate=self.mel.sample_rate,
            log=self.mel.log,
            **config.generator[name],
        )
        self._check_sizes(name)
        self._makes = {
            "vocoder": lambda rngs: network(
                self.vocoder_config, weight_norm=True, dtype=dtype, rngs=rngs
            )
        }
        for adversary in self._adversaries:
            make, adversary_sizes = _DISCRIMINATORS[adversary]
            adversary_sizes = adversary_sizes(**config.discriminator[adversary])
            self._makes[adversary] = lambda rngs, make=make, sizes=adversary_sizes: make(
                sizes, dtype=dtype, rngs=rngs
            )
        self._graphs = {name: state.define(make) for name, make in self._makes.items()}
        tx = optim.make_optimizer(config.optimizer, config.batch_size, steps_per_epoch)
        self._txs = dict.fromkeys(self._makes, tx)
        self.prepare_text = None

    def _check_sizes(self, name: str) -> None:
        hop, rates = self.mel.hop_length, self.vocoder_config.upsample_rates
        if self.vocoder_config.hop_length != hop:
            raise ValueError(
                f"config.generator.{name}.upsample_rates={rates} make "
                f"{self.vocoder_config.hop_length} samples a frame, but config.mel.hop_length is "
                f"{hop}: choose rates whose product is {hop}."
            )
        if self.config.data.samples % hop:
            raise ValueError(
                f"config.data.samples={self.config.data.samples} is no whole number of frames: "
                f"choose a multiple of config.mel.hop_length={hop}."
            )

    def load_frozen(self) -> Tree:
        """Returns {}: this stage reads no other network."""
        return {}

    def start_weights(self) -> dict[str, Tree]:
        """Returns the generator to go on from, {} for none."""
        return split_weight_norm(
            networks.start_weights(self.config.init_from, "vocoder", self.vocoder_config)
        )

    def init(self, key: jax.Array) -> state.TrainState:
        """Returns the state of step 0."""
        averaged = ("vocoder",) if self.config.ema_decay else ()
        return state.start(self._makes, self._txs, averaged, key)

    def train_step(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> tuple[state.TrainState, dict[str, jax.Array]]:
        """One step of all networks; the discriminators rest until their start.

        Generator and discriminators take their gradients at the same weights, so that one pass
        through the discriminators serves both (HiFi-GAN's code updates the discriminators first).
        """
        del frozen
        active = train.step >= self.config.discriminator.start

        def loss_fn(params, batch, key):
            del key
            audio = batch["audio"]
            mel = mel_lib.log_mel(audio, self.mel)
            fake = state.merge(self._graphs["vocoder"], params["vocoder"])(mel)
            distance = jnp.abs(mel_lib.log_mel(fake, self.mel) - mel).mean()
            judged = {name: params[name] for name in self._adversaries}
            extra = {name: train.extra[name] for name in self._adversaries}
            scores, slopes, extra = self._adversary(
                active, extra, audio, *jax.lax.stop_gradient((judged, fake))
            )
            # The adversaries' part enters as a linear term with exactly its gradients, which are
            # then not formed at all before the start.
            linear = optax.tree.vdot(slopes, {"fake": fake, "judged": judged})
            loss = self.config.mel_weight * distance
            total = loss + scores["generator_loss"] + scores["feature_loss"]
            aux = {"loss": total, "mel_l1": distance, **scores, "extra": extra}
            return loss + linear, aux

        grad_fn = optim.accumulated_grad(loss_fn, self.config.accumulate)
        (_, aux), grads = grad_fn(train.params, batch, key)
        update = lambda name: optim.update(
            self._txs[name], grads[name], train.params[name], train.opt[name]
        )
        updated = {"vocoder": update("vocoder")}
        updated |= jax.lax.cond(
            active,
            lambda: {name: update(name) for name in self._adversaries},
            lambda: {name: (train.params[name], train.opt[name]) for name in self._adversaries},
        )
        params = {name: new for name, (new, _) in updated.items()}
        opt = {name: opt for name, (_, opt) in updated.items()}
        new = state.advance(train, params, opt, self.config.ema_decay, aux.pop("extra"))
        return new, aux

    def _adversary(self, active, extra, audio, params, fake):
        """Returns scalars, gradients {"fake", "judged"} and the discriminators' state.

        All zero, and nothing computed, unless `active`.
        """

        def play():
            outputs_real, pull_real, extra_real = jax.vjp(
                lambda params: self._judge(params, extra, audio), params, has_aux=True
            )
            outputs_fake, pull_fake, extra_fake = jax.vjp(
                lambda params, fake: self._judge(params, extra_real, fake),
                params,
                fake,
                has_aux=True,
            )
            d_loss, (slope_real, slope_fake) = jax.value_and_grad(discriminator_loss, (0, 1))(
                outputs_real, outputs_fake
            )
            judged = jax.tree.map(jnp.add, pull_real(slope_real)[0], pull_fake(slope_fake)[0])

            def generator_losses(outputs_fake):
                g_loss = generator_loss(outputs_fake)
                features = self.config.feature_weight * feature_distance(outputs_real, outputs_fake)
                return g_loss + features, (g_loss, features)

            slope, (g_loss, features) = jax.grad(generator_losses, has_aux=True)(outputs_fake)
            scores = {
                "generator_loss": g_loss,
                "feature_loss": features,
                "discriminator_loss": d_loss,
            }
            return scores, {"fake": pull_fake(slope)[1], "judged": judged}, extra_fake

        def rest():
            scores, slopes, _ = jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(play)
            )
            return scores, slopes, extra

        return jax.lax.cond(active, play, rest)

    def _judge(self, params: Tree, extra: Tree, wav: jax.Array):
        """Returns all discriminators' (logits, features), in float32, and their new state."""
        outputs, new_extra = [], {}
        for name in self._adversaries:
            module = state.merge(self._graphs[name], params[name], extra[name])
            outputs += module(wav)
            new_extra[name] = state.split(module)[1]
        return jax.tree.map(lambda x: x.astype(jnp.float32), outputs), new_extra

    def _reconstruct(self, train: state.TrainState, audio: jax.Array):
        """Returns the mels of waveforms [b, samples], and the waveforms made of them."""
        mel = mel_lib.log_mel(audio, self.mel)
        vocoder = state.merge(self._graphs["vocoder"], train.weights()["vocoder"])
        return mel, vocoder(mel)

    def eval_step(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns each example's L1 distance of mels [b]."""
        del frozen, key
        mel, fake = self._reconstruct(train, batch["audio"])
        return {"loss": jnp.abs(mel_lib.log_mel(fake, self.mel) - mel).mean((1, 2))}

    def summarize(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns sounds and spectrograms of a few recordings and of their reconstructions."""
        del frozen, key
        audio = batch["audio"][:_SUMMARIES]
        mel, fake = self._reconstruct(train, audio)
        return {
            "image/recording": spectrogram_image(mel, self.mel),
            "image/reconstruction": spectrogram_image(mel_lib.log_mel(fake, self.mel), self.mel),
            "audio/recording": audio[..., None],
            "audio/reconstruction": fake[..., None],
        }

    def export(self, params: Tree, extra: Tree, folder: str) -> None:
        """Writes `vocoder` into a model folder, its weight norm folded into plain kernels."""
        del extra
        folded = fold_weight_norm(params["vocoder"])
        networks.save_network(folder, "vocoder", self.vocoder_config, folded)
        save_index(folder, mel=dataclasses.asdict(self.mel), sample_rate=self.mel.sample_rate)


def discriminator_loss(real: discriminators.Outputs, fake: discriminators.Outputs) -> jax.Array:
    """Returns the least-squares loss: recordings to 1, the generator's to 0 (equation 1)."""
    return sum(
        jnp.square(1 - r).mean() + jnp.square(f).mean()
        for (r, _), (f, _) in zip(real, fake, strict=True)
    )


def generator_loss(fake: discriminators.Outputs) -> jax.Array:
    """Returns the least-squares loss of the generator (equation 2)."""
    return sum(jnp.square(1 - logits).mean() for logits, _ in fake)


def feature_distance(real: discriminators.Outputs, fake: discriminators.Outputs) -> jax.Array:
    """Returns the L1 distance of the discriminators' features, summed over layers (equation 4)."""
    return sum(
        jnp.abs(a - b).mean()
        for (_, features_real), (_, features_fake) in zip(real, fake, strict=True)
        for a, b in zip(features_real, features_fake, strict=True)
    )
