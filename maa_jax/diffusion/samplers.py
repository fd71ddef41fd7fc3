"""Samplers: from noise to a latent, as one `lax.scan`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Denoise = Callable[[jax.Array, jax.Array], jax.Array]


def guided(
    unet: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    context: jax.Array,
    unconditional: jax.Array,
    guidance_scale: jax.Array | float,
) -> Denoise:
    """Classifier-free guidance, with and without the condition in one batch.

    Args:
      unet: (latents [2b, h, w, c], timesteps [2b], context [2b, n, d]) -> noise [2b, h, w, c].
      context: condition tokens [b, n, d].
      unconditional: tokens of the empty or the negative prompt, [b, n, d].
      guidance_scale: 1 is the condition alone; larger values follow it more closely.

    Returns:
      A denoiser (latents [b, h, w, c], timestep []) -> noise [b, h, w, c].
    """
    both = jnp.concatenate([unconditional, context])

    def denoise(latents: jax.Array, timestep: jax.Array) -> jax.Array:
        timesteps = jnp.broadcast_to(timestep, 2 * len(latents))
        without, with_ = jnp.split(unet(jnp.concatenate([latents] * 2), timesteps, both), 2)
        return without + guidance_scale * (with_ - without)

    return denoise


def ddim_coefficients(timesteps: jax.Array, alphas_cumprod: jax.Array) -> jax.Array:
    """Returns what a DDIM step needs, in the order of sampling.

    Args:
      timesteps: ascending int [steps], as `Schedule.ddim_timesteps` gives them.
      alphas_cumprod: [num_train_timesteps].

    Returns:
      float32 [steps, 3]: timestep, its alpha and the alpha of the next latent. The last latent
      still has the schedule's first alpha, as in LDM (diffusers: set_alpha_to_one=False).
    """
    timesteps, alphas_cumprod = jnp.asarray(timesteps), jnp.asarray(alphas_cumprod)
    alphas = alphas_cumprod[timesteps]
    following = jnp.concatenate([alphas_cumprod[:1], alphas[:-1]])
    return jnp.stack([timesteps.astype(jnp.float32), alphas, following], axis=1)[::-1]


def ddim_scan(
    denoise: Denoise,
    latents: jax.Array,
    coefficients: jax.Array,
    *,
    eta: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Takes DDIM steps (Song et al. 2021, equation 12) with one `lax.scan`.

    Args:
      denoise: (latents [b, h, w, c], timestep []) -> noise [b, h, w, c].
      latents: [b, h, w, c] at the first step's timestep.
      coefficients: [steps, 3] from `ddim_coefficients`, or consecutive rows of it.
      eta: 0 is deterministic, 1 has the noise of ancestral sampling.
      key: with eta above 0, one key a sample [b], so that a sample does not depend on its batch.

    Returns:
      Latents [b, h, w, c] after the last step, of the dtype that came in.
    """
    if eta and key is None:
        raise ValueError(f"eta={eta} adds noise: give one key a sample, or eta=0")

    def step(x: jax.Array, row: jax.Array) -> tuple[jax.Array, None]:
        timestep, alpha, following = row
        noise = denoise(x, timestep.astype(jnp.int32))
        clean = (x - jnp.sqrt(1 - alpha) * noise) / jnp.sqrt(alpha)
        sigma = eta * jnp.sqrt((1 - following) / (1 - alpha) * (1 - alpha / following))
        y = jnp.sqrt(following) * clean + jnp.sqrt(1 - following - sigma**2) * noise
        if eta:
            keys = jax.vmap(jax.random.fold_in, (0, None))(key, timestep.astype(jnp.int32))
            y += sigma * jax.vmap(lambda k: jax.random.normal(k, x.shape[1:]))(keys)
        return y.astype(x.dtype), None

    return jax.lax.scan(step, latents, coefficients)[0]


def ddim(
    denoise: Denoise,
    latents: jax.Array,
    timesteps: jax.Array,
    alphas_cumprod: jax.Array,
    eta: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Samples with DDIM over all timesteps, from noise [b, h, w, c] to latents [b, h, w, c].

    `timesteps` is ascending int [steps]; the rest as in `ddim_scan`. The result is still scaled as
    the U-Net has it: divide by the autoencoder's scaling factor before decoding.
    """
    coefficients = ddim_coefficients(timesteps, alphas_cumprod)
    return ddim_scan(denoise, latents, coefficients, eta=eta, key=key)
