"""Helpers for comparing text and audio encoders with transformers' classes."""

import jax
import numpy as np
from flax import nnx

from maa_jax.model_folder.torch_layout import from_torch
from maa_jax.models.rngs import InitRngs


def abstract(network, config, **kwargs):
    """Returns (graphdef, state) of a network without weights."""
    return nnx.split(nnx.eval_shape(lambda: network(config, rngs=InitRngs(0), **kwargs)))


def load(network, config, tensors, **kwargs):
    """Returns a network filled with PyTorch's tensors, strictly."""
    graphdef, state = abstract(network, config, **kwargs)
    if hasattr(network, "from_file"):
        tensors = network.from_file(tensors)
    unused = getattr(network, "UNUSED", None)
    tensors = {k: v for k, v in tensors.items() if not (unused and unused.fullmatch(k))}
    return nnx.merge(graphdef, from_torch(state, tensors))


def randomise(module, seed=0):
    """Gives every parameter and running statistic of a PyTorch module a random value.

    Nothing is then zero or one, unlike fresh biases, norms and tables of relative positions.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(1 + 0.1 * noise.abs())
            elif value.ndim < 2:
                value.copy_(value + 0.1 * noise)
            else:
                value.copy_(noise / np.sqrt(max(1, np.prod(value.shape[1:]))))
    return module.eval()


def arrays(module):
    """Returns the state dict of a PyTorch module as numpy arrays."""
    return {name: value.numpy() for name, value in module.state_dict().items()}


def count(state):
    """Returns the number of parameters of an abstract state."""
    return sum(x.size for x in jax.tree.leaves(state))


def assert_close(ours, theirs, tolerance=1e-4):
    """Compares within `tolerance` of the largest value."""
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(
        np.asarray(ours, np.float32), theirs, atol=tolerance * np.abs(theirs).max(), rtol=0
    )


def ids_and_masks(vocab_size, lengths, n, seed=0):
    """Returns random ids [b, n] and the mask of the first `lengths` of each row."""
    ids = np.random.default_rng(seed).integers(3, vocab_size, (len(lengths), n))
    return ids, (np.arange(n) < np.array(lengths)[:, None]).astype(np.int64)
