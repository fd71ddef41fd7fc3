"""Training: the program `python -m maa_jax.train`, and its loop, `maa_jax.train.loop.train`."""
