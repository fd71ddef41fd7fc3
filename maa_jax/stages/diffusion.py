"""The latent diffusion stage (paper section 3.5): a text-conditional U-Net.

The autoencoder and the text encoder are frozen and come from model folders that the config names.
Latents are scaled to unit variance by a factor that is kept in the state. It is measured on the
first batches, or that of the model that the run goes on from.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from maa_jax import schema
from maa_jax.audio.mel import MelConfig
from maa_jax.data.stored_latents import FOLDER as LATENTS
from maa_jax.data.stored_latents import Latents
from maa_jax.data.text_embeddings import Contexts
from maa_jax.diffusion import samplers
from maa_jax.diffusion.schedule import Schedule
from maa_jax.encoders import text
from maa_jax.encoders.base import Conditioner
from maa_jax.encoders.stored import StoredContexts
from maa_jax.encoders.visual import open_conditioner
from maa_jax.files import FolderError, replace_folder, user_path
from maa_jax.latents import LatentCodec, check_front_end
from maa_jax.model_folder import hub, networks
from maa_jax.model_folder.index import content_hash, front_end, save_index, save_scheduler
from maa_jax.models.unet import UNet, UNetConfig
from maa_jax.stages.base import Scalars, SingleNetworkStage, SoundGenerator, Tree
from maa_jax.stages.images import spectrogram_image
from maa_jax.training.state import TrainState
from maa_jax.vocoder import Vocoder

_STEPS = 25  # sampler steps for the run's own samples
_AUDIO_PARTS = ("audio_encoder", "audio_projection")  # of a CLAP, to rank and score sounds


class DiffusionStage(SingleNetworkStage):
    """Trains `unet` on the latents of an autoencoder, conditioned by a text encoder.

    Config keys, in addition to those of every stage:
      unet: fields of UNetConfig.
      schedule: fields of Schedule, among them the U-Net's prediction type.
      autoencoder, text_encoder: model folders; the text encoder may also be an id on the Hugging
        Face hub or a name of `encoders.text.ENCODERS`.
      conditioning: the U-Net's context: "tokens", a caption's token states; or a whole CLIP's one
        embedding, of unit length, "norm_global", or as it is, "global", so that pictures can stand
        for captions.
      text_embeddings: folder of the training captions' contexts, computed by maa_jax.embed; "" to
        compute them in every step.
      latents: folder of the training examples' latents, stored by maa_jax.embed; "" to encode the
        recordings in every step.
      vocoder: model folder of a vocoder, for the sounds in TensorBoard and for export; "" for none.
      uncond_probability: probability that an example's condition is dropped.
      noise_draws: number of noisy copies of each latent in a step, which share one encoder pass.
      eval_draws: number of timesteps, each with its own noise, at which the validation loss of a
        recording is taken; more for few recordings.
      summary: `prompts` and `guidance_scale` of the sounds in TensorBoard.
    """

    network = "unet"
    can_remat = True
    prepare_batches = 4

    def __init__(self, config: ml_collections.ConfigDict):
        """Defines the networks, without weights, and checks that they are compatible.

        Raises:
          ValueError: a model folder that the config names is missing or incompatible.
        """
        dtype = jnp.dtype(config.dtype)
        self.schedule = schema.build(Schedule, config.schedule, "config.schedule")
        self.unet_config = schema.build(UNetConfig, config.unet, "config.unet")
        super().__init__(
            config,
            lambda rngs: UNet(self.unet_config, dtype=dtype, remat=config.remat, rngs=rngs),
        )
        self._folders = _folders(config)
        self.conditioner = self._open_conditioner()
        self.prepare_text = self.conditioner.prepare
        self._check_widths()
        mel = schema.build(MelConfig, config.mel, "config.mel")
        self.codec = LatentCodec.from_folder(self._folders["autoencoder"], mel=mel, dtype=dtype)
        self.codec.check_clip(config.data.samples)
        if config.latents:
            self.latents = Latents(pathlib.Path(user_path(config.latents), LATENTS))
            self.latents.check({"autoencoder": content_hash(self._folders["autoencoder"] / "vae")})
        if "vocoder" in self._folders:
            folder = self._folders["vocoder"]
            check_front_end(mel, {f"the vocoder in {folder}": front_end(folder, "vocoder")})
            self._vocoder = Vocoder.from_folder(folder, mel)

    def _open_conditioner(self) -> Conditioner:
        folder, config = self._folders["text_encoder"], self.config
        conditioning = config.conditioning
        if not config.text_embeddings:
            try:
                return open_conditioner(folder, conditioning)
            except FolderError as error:
                raise ValueError(f"config.text_encoder={config.text_encoder!r}: {error}") from error
        contexts = Contexts(user_path(config.text_embeddings))
        if contexts.text_encoder_sha256 != text.digest(folder, conditioning):
            raise ValueError(
                f"config.text_embeddings={config.text_embeddings!r} holds the contexts of another "
                f"text encoder ({contexts.text_encoder!r}) than "
                f"config.text_encoder={config.text_encoder!r}: make them agree, or write it again "
                "with python -m maa_jax.embed."
            )
        return StoredContexts(contexts, folder, conditioning)

    def _check_widths(self) -> None:
        given = self.conditioner.width
        if given != self.unet_config.cross_attention_dim:
            raise ValueError(
                f"config.unet.cross_attention_dim={self.unet_config.cross_attention_dim}, but the "
                f"text encoder in {self.config.text_encoder} gives {given}: set it to {given}."
            )
        latent = networks.load_config(self._folders["autoencoder"], "vae").latent_channels
        channels = self.in_channels(latent)
        if channels != self.unet_config.in_channels:
            raise ValueError(
                f"config.unet.in_channels={self.unet_config.in_channels}, but the autoencoder in "
                f"{self.config.autoencoder} has {latent} latent channels: set it to {channels}."
            )

    def in_channels(self, latent: int) -> int:
        """Returns the number of channels that the U-Net takes, for latents of so many."""
        return latent

    def channels(self, extra: Tree, frozen: Tree, batch: Tree) -> jax.Array | None:
        """Returns what the U-Net takes beside noisy latents, [b, h, w, k], if it takes anything."""
        del extra, frozen, batch
        return None

    def no_channels(self, extra: Tree, frozen: Tree, count: int) -> jax.Array | None:
        """Returns the same for `count` sounds that are made from text alone."""
        del extra, frozen, count
        return None

    def load_frozen(self) -> Tree:
        """Returns the frozen weights, and the conditions of the empty and the fixed prompts."""
        frozen = {
            "vae": networks.load_network(self._folders["autoencoder"], "vae")[1],
            "text": self.conditioner.params,
            "unconditional": self.conditioner.unconditional(),
            "prompts": self.conditioner.prepare(list(self.config.summary.prompts)),
        }
        if "vocoder" in self._folders:
            frozen["vocoder"] = networks.load_network(self._folders["vocoder"], "vocoder")[1]
        return frozen

    def start_weights(self) -> dict[str, Tree]:
        """Returns the denoiser to start from, {} for none."""
        return networks.start_weights(self.config.init_from, "unet", self.unet_config)

    def init(self, key: jax.Array) -> TrainState:
        """Returns the state of step 0; the latent scale is 1 until `prepare` measures it."""
        begin = super().init(key)
        zeros = {name: jnp.zeros(()) for name in ("count", "sum", "sum_squares")}
        return begin.replace(extra=begin.extra | {"latents": zeros | {"scale": jnp.ones(())}})

    def known_scale(self) -> float | None:
        """Returns the latents' scale of the model that training starts from.

        None if it starts from none, or from one with another autoencoder.
        """
        if not self.config.init_from:
            return None
        folder = hub.resolve(self.config.init_from)
        if not (folder / "vae").is_dir():
            return None
        folders = folder, self._folders["autoencoder"]
        theirs, ours = (networks.load_config(path, "vae") for path in folders)
        if dataclasses.replace(ours, scaling_factor=theirs.scaling_factor) != theirs:
            return None
        weights = (jax.tree.leaves(networks.load_network(path, "vae")[1]) for path in folders)
        # The weights of one of the two may have been rounded to half precision.
        same = all(np.allclose(a, b, rtol=1e-2, atol=1e-4) for a, b in zip(*weights, strict=True))
        return theirs.scaling_factor if same else None

    def prepare(self, train: TrainState, frozen: Tree, batch: Tree, key: jax.Array) -> TrainState:
        """Adds a batch to the running variance of the latents; scale = 1 / standard deviation.

        A model that goes on from another keeps its scale.
        """
        z = self._latents(frozen, batch, key, scale=1.0)
        seen = train.extra["latents"]
        count, total = seen["count"] + z.size, seen["sum"] + z.sum()
        squares = seen["sum_squares"] + jnp.square(z).sum()
        known = self.known_scale()
        measured = 1 / jnp.sqrt(squares / count - jnp.square(total / count))
        scale = measured if known is None else jnp.full((), known)
        latents = {"count": count, "sum": total, "sum_squares": squares, "scale": scale}
        return train.replace(extra=train.extra | {"latents": latents})

    def loss(
        self, params: Tree, extra: Tree, frozen: Tree, batch: Tree, key: jax.Array
    ) -> tuple[jax.Array, tuple[Scalars, Tree]]:
        """Returns the mean squared error at random timesteps, with some conditions dropped."""
        key_z, key_t, key_drop, key_noise = jax.random.split(key, 4)
        z, context = self._examples(extra, frozen, batch, key_z)
        channels = self.channels(extra, frozen, batch)
        z, context, channels = jax.tree.map(
            lambda x: jnp.repeat(x, self.config.noise_draws, 0), (z, context, channels)
        )
        timesteps = jax.random.randint(key_t, (len(z),), 0, self.schedule.num_train_timesteps)
        drop = jax.random.bernoulli(key_drop, self.config.uncond_probability, (len(z), 1, 1))
        unconditional = self.conditioner.encode(frozen["text"], frozen["unconditional"])
        context = jnp.where(drop, unconditional, context)
        noise = jax.random.normal(key_noise, z.shape)
        unet = self.merge(params, extra)
        errors = self._errors(unet, z, context, timesteps, noise, channels)
        return errors.mean(), ({}, {})

    def _examples(
        self, extra: Tree, frozen: Tree, batch: Tree, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the scaled latents [b, h, w, c] and the contexts [b, n, width] of a batch.

        `key` is one PRNG key, or one for each example.
        """
        z = self._latents(frozen, batch, key, scale=extra["latents"]["scale"])
        return z, self.conditioner.encode(frozen["text"], batch["text"])

    def _latents(
        self, frozen: Tree, batch: Tree, key: jax.Array, scale: jax.Array | float
    ) -> jax.Array:
        """Returns samples [b, h, w, c] of the posteriors of a batch, which may hold `moments`."""
        moments = batch.get("moments")
        if moments is None:
            moments = self.codec.moments(frozen["vae"], batch["audio"])
        return self.codec.sample(moments, key, scale=scale)

    def _errors(
        self,
        unet: UNet,
        z: jax.Array,
        context: jax.Array,
        timesteps: jax.Array,
        noise: jax.Array,
        channels: jax.Array | None,
    ) -> jax.Array:
        """Returns the mean squared error of the prediction from noisy latents, [b]."""
        noisy = self.schedule.add_noise(z, noise, timesteps)
        predicted = samplers.widened(unet)(noisy, timesteps, context, channels).astype(jnp.float32)
        error = predicted - self.schedule.target(z, noise, timesteps)
        return jnp.mean(jnp.square(error), axis=(1, 2, 3))

    def eval_step(self, train: TrainState, frozen: Tree, batch: Tree, key: jax.Array) -> Scalars:
        """Returns each example's loss [b], the mean of `config.eval_draws` draws.

        Latent, timesteps and noise depend on the recording's index alone, and not on its batch or
        its place there.
        """
        draws, steps = self.config.eval_draws, self.schedule.num_train_timesteps
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
        z, context = self._examples(train.extra, frozen, batch, keys)
        channels = self.channels(train.extra, frozen, batch)

        def losses(draw: jax.Array) -> jax.Array:
            key_noise = jax.vmap(jax.random.fold_in, (0, None))(keys, 1 + draw)
            noise = jax.vmap(lambda key: jax.random.normal(key, z.shape[1:]))(key_noise)
            timesteps = spread_timesteps(batch["index"] * draws + draw, steps)
            unet = self.merge(train.weights(), train.extra)
            return self._errors(unet, z, context, timesteps, noise, channels)

        return {"loss": jax.lax.map(losses, jnp.arange(draws)).mean(0)}

    def summarize(
        self, train: TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns samples of the fixed prompts: spectrograms, and sounds if there is a vocoder."""
        del batch
        scale = self.config.summary.guidance_scale
        mel, wav = self.generate(train, frozen, frozen["prompts"], key, guidance_scale=scale)
        summary = {"image/sample": spectrogram_image(mel, self.codec.mel)}
        return summary if wav is None else summary | {"audio/sample": wav[..., None]}

    def generate(
        self,
        train: TrainState,
        frozen: Tree,
        condition: Tree,
        key: jax.Array,
        *,
        guidance_scale: float,
        start_index: jax.Array | int = 0,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Samples a sound for each condition. Pure.

        Args:
          train: state, whose averaged weights are used if there are any.
          frozen: arrays from `load_frozen`.
          condition: result of `prepare_text` for n prompts.
          key: PRNG key; sound i starts from noise that depends on `start_index + i` and not on n.
          guidance_scale: scale of classifier-free guidance; 1 is none.
          start_index: index of the first sound.

        Returns:
          Log mels [n, frames, n_mels], and waveforms [n, samples] in -1..1, or None without a
          vocoder.
        """
        context = self.conditioner.encode(frozen["text"], condition)
        without = self.conditioner.encode(frozen["text"], frozen["unconditional"])
        without = jnp.broadcast_to(without, context.shape)
        shape = self.codec.shape(self.config.data.samples)
        indices = start_index + jnp.arange(len(context))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        unet = self.merge(train.weights(), train.extra)
        spacing = "trailing" if self.schedule.rescale_betas_zero_snr else "ldm"
        table = samplers.coefficients(
            "ddim", self.schedule, _STEPS, spacing=spacing, guidance_scale=guidance_scale
        )
        channels = self.no_channels(train.extra, frozen, len(context))
        predict = samplers.guided(samplers.widened(unet), context, without, channels)
        z = samplers.sample(predict, noise, table)
        mel = self.codec.decode(frozen["vae"], z, scale=train.extra["latents"]["scale"])
        if "vocoder" not in frozen:
            return mel, None
        wav, _ = self._vocoder(frozen["vocoder"], mel)
        return mel, wav

    def sound_generator(self) -> SoundGenerator | None:
        """Returns the function that samples sounds with the run's seed; None without a vocoder."""
        if "vocoder" not in self._folders:
            return None
        scale = self.config.summary.guidance_scale

        def generate(
            train: TrainState, frozen: Tree, condition: Tree, first: jax.Array
        ) -> jax.Array:
            key = jax.random.key(self.config.seed)
            _, wav = self.generate(
                train, frozen, condition, key, guidance_scale=scale, start_index=first
            )
            assert wav is not None  # there is a vocoder
            return wav

        return generate

    def export(self, params: Tree, extra: Tree, folder: pathlib.Path) -> None:
        """Writes a complete model folder: the U-Net and the frozen parts it was trained with."""
        networks.save_network(folder, "unet", self.unet_config, params["unet"])
        scale = float(np.asarray(extra["latents"]["scale"]))
        vae_config = dataclasses.replace(self.codec.config, scaling_factor=scale)
        vae = networks.load_network(self._folders["autoencoder"], "vae")[1]
        networks.save_network(folder, "vae", vae_config, vae)
        save_scheduler(folder, self.schedule)
        self.conditioner.save(folder)
        copied = [self._folders["text_encoder"] / name for name in _AUDIO_PARTS]
        if "vocoder" in self._folders:
            copied.append(self._folders["vocoder"] / "vocoder")
        for source in copied:
            if source.is_dir():
                with replace_folder(folder / source.name) as new:
                    shutil.copytree(source, new, dirs_exist_ok=True)
        mel = self.codec.mel
        save_index(
            folder,
            conditioning=self.config.conditioning,
            mel=dataclasses.asdict(mel),
            sample_rate=mel.sample_rate,
            max_duration=self.config.data.samples / mel.sample_rate,
            # For the model card.
            data={"dataset": self.config.data.dataset, "split": self.config.data.split},
            training=_without_places(json.loads(self.config.to_json_best_effort())),
        )


def spread_timesteps(index: jax.Array, total: int) -> jax.Array:
    """Returns timesteps, 0 to total - 1, that any run of consecutive indices spreads evenly.

    They follow the multiples of the golden ratio modulo 1 (a Kronecker sequence), computed in
    whole numbers: the fraction times 2^32.

    Args:
      index: whole numbers from 0.
      total: number of timesteps.
    """
    fraction = index.astype(jnp.uint32) * jnp.uint32(2654435769) + jnp.uint32(2**31)
    return ((fraction >> 8).astype(jnp.float32) / 2**24 * total).astype(jnp.int32)


def _without_places(record: Any) -> Any:
    """Returns a record of a config in which paths of this machine are names of files or folders."""
    if isinstance(record, dict):
        return {key: _without_places(value) for key, value in record.items()}
    if isinstance(record, str) and pathlib.PurePath(record).is_absolute():
        return pathlib.PurePath(record).name
    return record


def _folders(config: ml_collections.ConfigDict) -> dict[str, pathlib.Path]:
    """Returns {key: model folder} for the config's keys; all are found before any is read."""
    folders = {
        "text_encoder": _folder(config, "text_encoder", "clap", text.find),
        "autoencoder": _folder(config, "autoencoder", "autoencoder"),
    }
    if config.vocoder:
        folders["vocoder"] = _folder(config, "vocoder", "vocoder")
    return folders


def _folder(
    config: ml_collections.ConfigDict,
    key: str,
    stage: str,
    find: Callable[[str], pathlib.Path] = hub.resolve,
) -> pathlib.Path:
    """Returns the model folder that a key of the config names."""
    try:
        return find(config[key])
    except FolderError as error:
        raise ValueError(
            f"config.{key}={config[key]!r} is not a model folder. Train one with --config=configs/"
            f"{stage}.py, export it with `python -m maa_jax.convert --from=workdir "
            f"--workdir=... --out=...`, and give that folder here. ({error})"
        ) from error
