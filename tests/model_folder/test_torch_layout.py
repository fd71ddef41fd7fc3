import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maa_jax.model_folder import torch_layout


class Net(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([nnx.Conv(2, 3, (4, 5), rngs=rngs)])
        self.up = nnx.ConvTranspose(3, 7, (4,), transpose_kernel=True, rngs=rngs)
        self.dense = nnx.Linear(2, 3, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.words = nnx.Embed(5, 2, rngs=rngs)
        self.gain = nnx.Param(jnp.ones(4))


SHAPES = {
    "blocks.0.weight": (3, 2, 4, 5),
    "blocks.0.bias": (3,),
    "up.weight": (3, 7, 4),
    "up.bias": (7,),
    "dense.weight": (3, 2),
    "norm.weight": (3,),
    "norm.bias": (3,),
    "norm.running_mean": (3,),
    "norm.running_var": (3,),
    "words.weight": (5, 2),
    "gain": (4,),
}


def tensors():
    rng = np.random.default_rng(0)
    return {name: np.abs(rng.standard_normal(shape)).astype("f") for name, shape in SHAPES.items()}


def abstract():
    return nnx.eval_shape(lambda: Net(nnx.Rngs(0)))


def test_names_and_layouts_are_pytorchs():
    params = nnx.to_pure_dict(nnx.state(Net(nnx.Rngs(0))))
    written = torch_layout.to_torch(params)
    assert {k: v.shape for k, v in written.items()} == SHAPES
    kernel = params["blocks"][0]["kernel"]
    np.testing.assert_array_equal(written["blocks.0.weight"][2, 1], kernel[:, :, 1, 2])


def test_round_trip_is_exact_from_modules_and_states():
    given = tensors()
    for module in (abstract(), nnx.state(abstract()), nnx.to_pure_dict(nnx.state(abstract()))):
        params = torch_layout.from_torch(module, given)
        back = torch_layout.to_torch(params)
        assert back.keys() == given.keys()
        assert all((back[k] == given[k]).all() for k in given)
    graphdef = nnx.graphdef(abstract())
    model = nnx.merge(graphdef, params)
    np.testing.assert_array_equal(model.norm.var[...], given["norm.running_var"])


def test_every_mismatch_is_listed_at_once():
    given = tensors()
    del given["gain"], given["norm.running_var"]
    given["dense.weight"] = np.zeros((2, 3), "f")  # not transposed
    given["other.weight"] = np.zeros(3, "f")
    given["norm.num_batches_tracked"] = np.zeros((), np.int64)  # passed over
    with pytest.raises(ValueError) as error:
        torch_layout.from_torch(abstract(), given)
    for part in (
        "4 tensors do not fit",
        "missing: gain",
        "missing: norm.running_var",
        "shape of dense.weight: (2, 3), expected (3, 2)",
        "no place for: other.weight",
    ):
        assert part in str(error.value)
    assert "num_batches_tracked" not in str(error.value)


def test_rename_and_two_names_for_one_place():
    given = {f"model.{k}": v for k, v in tensors().items()}
    strip = lambda name: name.removeprefix("model.")
    params = torch_layout.from_torch(abstract(), given, rename=strip)
    np.testing.assert_array_equal(params["gain"], given["model.gain"])
    with pytest.raises(ValueError, match=r"twice: gain, as model\.gain and as gain"):
        torch_layout.from_torch(abstract(), {**given, "gain": given["model.gain"]}, rename=strip)


def test_values_take_the_parameters_dtype():
    given = {k: v.astype(np.float16) for k, v in tensors().items()}
    params = torch_layout.from_torch(abstract(), given)
    assert params["gain"].dtype == np.float32
