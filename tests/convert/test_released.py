import jax
import numpy as np
import pytest
from flax import nnx

from maa_jax.convert import released
from maa_jax.model_folder import torch_layout
from maa_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from maa_jax.models.rngs import InitRngs
from maa_jax.models.unet import UNet, UNetConfig
from tests.parity.named_weights import state_dict

CASES = {
    "unet_small": (
        released.unet_from_ldm,
        released.unet_to_ldm,
        UNet,
        UNetConfig(block_out_channels=(32, 64), cross_attention_dim=48),
    ),
    "autoencoder_small": (
        released.autoencoder_from_ldm,
        released.autoencoder_to_ldm,
        Autoencoder,
        AutoencoderConfig(block_out_channels=(32, 64, 64, 128)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_name_has_one_counterpart_and_comes_back(case):
    there, back, network, config = CASES[case]
    tensors = state_dict(case)
    renamed = there(tensors)
    assert len(renamed) == len(tensors)
    assert not {k for k in renamed if k.startswith(("input_blocks", "output_blocks", "middle"))}
    # The strict loader takes them, so every name and shape is one of the network's.
    torch_layout.from_torch(nnx.eval_shape(lambda: network(config, rngs=InitRngs(0))), renamed)
    again = back(renamed)
    assert again.keys() == tensors.keys()
    assert all(np.array_equal(again[k], tensors[k]) for k in tensors)


@pytest.mark.parametrize("levels", [1, 3])
def test_other_depths_map_one_to_one(levels):
    config = UNetConfig(
        block_out_channels=(8, 16, 24)[:levels],
        layers_per_block=levels,
        norm_num_groups=4,
        num_heads=2,
        cross_attention_dim=5,
    )
    abstract = nnx.eval_shape(lambda: UNet(config, rngs=InitRngs(0)))
    params = jax.tree.map(lambda x: np.zeros(x.shape), nnx.to_pure_dict(nnx.state(abstract)))
    tensors = torch_layout.to_torch(params)
    ldm = released.unet_to_ldm(tensors)
    assert len(ldm) == len(tensors) and not set(ldm) & set(tensors)
    assert released.unet_from_ldm(ldm).keys() == tensors.keys()


def test_unknown_names_pass_unchanged():
    tensors = state_dict("unet_small") | {"logvar": np.zeros(3)}
    assert "logvar" in released.unet_from_ldm(tensors)
