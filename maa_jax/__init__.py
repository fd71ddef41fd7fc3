"""maa_jax: latent-diffusion text-to-audio in JAX."""
