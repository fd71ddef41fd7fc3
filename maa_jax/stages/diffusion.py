"""The latent diffusion stage (paper section 3.5): noise prediction under a text condition.

The autoencoder and the text encoder are frozen and come from model folders that the config names.
Latents are scaled to unit variance with a factor that the first batches give and the state keeps.
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
import optax

from maa_jax.audio import mel as mel_lib
from maa_jax.data.text_embeddings import Contexts
from maa_jax.diffusion import samplers, schedule
from maa_jax.encoders import text
from maa_jax.encoders.stored import StoredContexts
from maa_jax.files import FolderError, replace_folder, user_path
from maa_jax.model_folder import hub, networks
from maa_jax.model_folder.index import save_index, save_scheduler
from maa_jax.models import unet
from maa_jax.training import optim, state
from maa_jax.training.metrics import spectrogram_image

Tree = Any

_SUMMARY_STEPS = 25
_AUDIO_PARTS = ("audio_encoder", "audio_projection")  # of a CLAP, for scores


class DiffusionStage:
    """Trains `unet` on latents of `vae` under conditions of `text_encoder`."""

    def __init__(self, config: ml_collections.ConfigDict, *, steps_per_epoch: int):
        """Defines the network; no weights.

        Raises:
          ValueError: if a model folder that the config names is missing or of another width.
        """
        self.config = config
        self.mel = mel_lib.MelConfig(**config.mel)
        self.schedule = schedule.Schedule()
        self.unet_config = unet.UNetConfig(**config.unet)
        self._make = lambda rngs: unet.UNet(
            self.unet_config, dtype=jnp.dtype(config.dtype), remat=config.remat, rngs=rngs
        )
        self._graph = state.define(self._make)
        self._tx = optim.make_optimizer(config.optimizer, config.batch_size, steps_per_epoch)
        self._text_folder = _folder(config, "text_encoder", "clap", text.find)
        if config.text_embeddings:
            self._conditioner = self._stored_contexts()
        else:
            self._conditioner = text.TextConditioner.from_folder(self._text_folder)
        self.prepare_text = self._conditioner.prepare
        self._vae_folder = _folder(config, "autoencoder", "autoencoder")
        self._check_widths()

    def _stored_contexts(self) -> StoredContexts:
        contexts = Contexts(user_path(self.config.text_embeddings))
        if contexts.text_encoder != str(self.config.text_encoder):
            raise ValueError(
                f"config.text_embeddings={self.config.text_embeddings!r} holds the contexts of "
                f"{contexts.text_encoder!r}, but config.text_encoder="
                f"{self.config.text_encoder!r}: set one of them after the other."
            )
        return StoredContexts(contexts, self._text_folder)

    def _check_widths(self) -> None:
        given = self._conditioner.width
        if given != self.unet_config.cross_attention_dim:
            raise ValueError(
                f"config.unet.cross_attention_dim={self.unet_config.cross_attention_dim}, but the "
                f"text encoder in {self.config.text_encoder} gives {given}: set it to {given}."
            )
        channels = networks.load_config(self._vae_folder, "vae").latent_channels
        if channels != self.unet_config.in_channels:
            raise ValueError(
                f"config.unet.in_channels={self.unet_config.in_channels}, but the autoencoder in "
                f"{self.config.autoencoder} has {channels} latent channels: set it to {channels}."
            )

    def load_frozen(self) -> Tree:
        """Returns the weights that are only read, and the conditions of the fixed prompts."""
        dtype = jnp.dtype(self.config.dtype)
        self._vae, vae = networks.load_network(self._vae_folder, "vae", dtype=dtype)
        frozen = {
            "vae": vae,
            "text": self._conditioner.params,
            "empty": self._conditioner.unconditional(),
            "prompts": self.prepare_text(list(self.config.summary.prompts)),
        }
        if self.config.vocoder:
            folder = _folder(self.config, "vocoder", "vocoder")
            self._vocoder, frozen["vocoder"] = networks.load_network(folder, "vocoder", dtype=dtype)
        return frozen

    def start_weights(self) -> dict[str, Tree]:
        """Returns the denoiser to go on from, {} for none."""
        return networks.start_weights(self.config.init_from, "unet", self.unet_config)

    def init(self, key: jax.Array) -> state.TrainState:
        """Returns the state of step 0; the latent scale is 1 until `prepare` measures it."""
        averaged = ("unet",) if self.config.ema_decay else ()
        begin = state.start({"unet": self._make}, {"unet": self._tx}, averaged, key)
        zeros = {name: jnp.zeros(()) for name in ("count", "sum", "sum_squares")}
        return begin.replace(extra=begin.extra | {"latents": zeros | {"scale": jnp.ones(())}})

    def prepare(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> state.TrainState:
        """Adds a batch to the measure of the latents' spread: scale = 1 / standard deviation."""
        z, seen = self._encode(frozen, batch["audio"], key), train.extra["latents"]
        count, total = seen["count"] + z.size, seen["sum"] + z.sum()
        squares = seen["sum_squares"] + jnp.square(z).sum()
        scale = 1 / jnp.sqrt(squares / count - jnp.square(total / count))
        latents = {"count": count, "sum": total, "sum_squares": squares, "scale": scale}
        return train.replace(extra=train.extra | {"latents": latents})

    def _encode(self, frozen: Tree, audio: jax.Array, key: jax.Array) -> jax.Array:
        """Returns latents [b, h, w, c] drawn from the posterior, unscaled, in float32."""
        image = mel_lib.log_mel(audio, self.mel).swapaxes(1, 2)[..., None]
        mean, logvar = networks.build(self._vae, frozen["vae"]).encode(image)
        noise = jax.random.normal(key, mean.shape)
        z = mean + jnp.exp(0.5 * logvar) * noise
        return jax.lax.stop_gradient(z.astype(jnp.float32))

    def _errors(self, module, z, context, timesteps, key) -> jax.Array:
        """Returns the mean squared error of the noise predicted in scaled latents, [b]."""
        noise = jax.random.normal(key, z.shape)
        noisy = self.schedule.add_noise(z, noise, timesteps)
        eps = module(noisy, timesteps, context).astype(jnp.float32)
        return jnp.mean(jnp.square(eps - noise), axis=(1, 2, 3))

    def _context(self, frozen: Tree, condition: Tree) -> jax.Array:
        return jax.lax.stop_gradient(self._conditioner.encode(frozen["text"], condition))

    def train_step(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> tuple[state.TrainState, dict[str, jax.Array]]:
        """One step on the noise of uniformly drawn timesteps; conditions dropped by chance."""
        scale, draws = train.extra["latents"]["scale"], self.config.noise_draws

        def loss_fn(params, batch, key):
            key_z, key_t, key_drop, key_noise = jax.random.split(key, 4)
            z = self._encode(frozen, batch["audio"], key_z) * scale
            z, context = (
                jnp.repeat(x, draws, 0) for x in (z, self._context(frozen, batch["text"]))
            )
            timesteps = jax.random.randint(key_t, len(z), 0, self.schedule.num_train_timesteps)
            drop = jax.random.bernoulli(key_drop, self.config.uncond_probability, (len(z), 1, 1))
            context = jnp.where(drop, self._context(frozen, frozen["empty"]), context)
            module = state.merge(self._graph, params)
            return self._errors(module, z, context, timesteps, key_noise).mean(), {}

        grad_fn = optim.accumulated_grad(loss_fn, self.config.accumulate)
        (loss, _), grads = grad_fn(train.params["unet"], batch, key)
        params, opt = optim.update(self._tx, grads, train.params["unet"], train.opt["unet"])
        new = state.advance(train, {"unet": params}, {"unet": opt}, self.config.ema_decay)
        return new, {"loss": loss, "grad_norm": optax.tree.norm(grads)}

    def eval_step(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns each example's loss [b], over timesteps spread evenly."""
        key_z, key_noise = jax.random.split(key)
        size, total = len(batch["audio"]), self.schedule.num_train_timesteps
        timesteps = ((jnp.arange(size) + 0.5) * total / size).astype(jnp.int32)
        z = self._encode(frozen, batch["audio"], key_z) * train.extra["latents"]["scale"]
        module = state.merge(self._graph, train.weights()["unet"])
        context = self._context(frozen, batch["text"])
        return {"loss": self._errors(module, z, context, timesteps, key_noise)}

    def summarize(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Samples the fixed prompts: spectrograms, and sound where a vocoder is given."""
        context = self._context(frozen, frozen["prompts"])
        without = jnp.broadcast_to(self._context(frozen, frozen["empty"]), context.shape)
        frames = batch["audio"].shape[1] // self.mel.hop_length
        shape = (self.mel.n_mels // 8, frames // 8, self.unet_config.in_channels)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(context)))
        noise = jax.vmap(lambda k: jax.random.normal(k, shape))(keys)
        module = state.merge(self._graph, train.weights()["unet"])
        z = samplers.sample(
            samplers.guided(module, context, without),
            noise,
            samplers.coefficients(
                "ddim",
                self.schedule,
                _SUMMARY_STEPS,
                guidance_scale=self.config.summary.guidance_scale,
            ),
        )
        vae = networks.build(self._vae, frozen["vae"])
        mel = vae.decode(z / train.extra["latents"]["scale"])[..., 0].swapaxes(1, 2)
        out = {"image/sample": spectrogram_image(mel, self.mel)}
        if "vocoder" in frozen:
            wav = networks.build(self._vocoder, frozen["vocoder"])(mel)
            out["audio/sample"] = jnp.clip(wav.astype(jnp.float32), -1, 1)[..., None]
        return out

    def export(self, params: Tree, extra: Tree, folder: str) -> None:
        """Writes a whole model folder: the U-Net, and the frozen parts that it was trained with."""
        networks.save_network(folder, "unet", self.unet_config, params["unet"])
        vae_config = dataclasses.replace(
            networks.load_config(self._vae_folder, "vae"),
            scaling_factor=float(np.asarray(extra["latents"]["scale"])),
        )
        vae = networks.load_network(self._vae_folder, "vae")[1]
        networks.save_network(folder, "vae", vae_config, vae)
        save_scheduler(folder, self.schedule)
        self._conditioner.save(folder)
        copied = [self._text_folder / name for name in _AUDIO_PARTS]
        copied = [path for path in copied if path.is_dir()]
        if self.config.vocoder:
            copied.append(pathlib.Path(_folder(self.config, "vocoder", "vocoder")) / "vocoder")
        for source in copied:
            with replace_folder(pathlib.Path(folder) / source.name) as new:
                shutil.copytree(source, new, dirs_exist_ok=True)
        save_index(
            folder,
            mel=dataclasses.asdict(self.mel),
            sample_rate=self.mel.sample_rate,
            max_duration=self.config.data.samples / self.mel.sample_rate,
            # For the model card.
            data={"dataset": self.config.data.dataset, "split": self.config.data.split},
            training=json.loads(self.config.to_json_best_effort()),
        )


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
            f"config.{key}={config[key]!r} is no model folder. Train one with --config=configs/"
            f"{stage}.py, turn it into a folder with `python -m maa_jax.convert --from=workdir "
            f"--workdir=... --out=...`, and name that folder here. ({error})"
        ) from error
