import numpy as np
import pytest
from safetensors.numpy import save_file

torch = pytest.importorskip("torch", reason="released files are read with PyTorch")

from maa_jax.convert import folders, open_clip, released  # noqa: E402
from maa_jax.encoders.visual import GlobalConditioner, open_conditioner  # noqa: E402
from maa_jax.model_folder import networks, torch_layout  # noqa: E402
from maa_jax.models.clip import ClipModel  # noqa: E402
from maa_jax.text.tokenizer import Tokenizer  # noqa: E402
from tests import open_clip as reference  # noqa: E402
from tests.models import parity  # noqa: E402
from tests.parity import named_weights  # noqa: E402
from tests.tiny_encoders import write_encoder  # noqa: E402


def test_an_open_clip_file_gives_what_its_own_network_gives(tmp_path):
    words = write_encoder("clip", tmp_path / "words")
    theirs = reference.random(words=Tokenizer.from_folder(words).vocab_size)
    state = {name: np.array(x, order="C") for name, x in parity.arrays(theirs).items()}
    save_file(state, tmp_path / "open_clip_model.safetensors")
    folder = folders.open_clip_to_folder(
        str(tmp_path / "model"),
        checkpoint=str(tmp_path / "open_clip_model.safetensors"),
        tokenizer=str(words),
    )
    ours = GlobalConditioner.from_folder(folder, norm="none")
    assert (ours.width, ours.image_size) == (24, 16)
    ids = ours.prepare(["a crow caws", "", "a dog"])
    rng = np.random.default_rng(0)
    seen = ours.prepare_images([[rng.integers(0, 256, (20, 30, 3), "u1")] for _ in range(3)])
    text, pictures = reference.embeddings(theirs, ids, seen["pixels"][:, 0])
    parity.assert_close(ours.encode(ours.params, ids)[:, 0], text)
    parity.assert_close(ours.encode(ours.params, seen)[:, 0], pictures)


def test_the_sizes_of_vit_h_14_follow_from_its_tensors():
    layers = {"": (24, 1024), "visual.": (32, 1280)}
    shapes = {
        "token_embedding.weight": (49408, 1024),
        "positional_embedding": (77, 1024),
        "text_projection": (1024, 1024),
        "visual.conv1.weight": (1280, 3, 14, 14),
        "visual.positional_embedding": (257, 1280),
    }
    for tower, (count, width) in layers.items():
        shapes[f"{tower}transformer.resblocks.0.mlp.c_fc.bias"] = (4 * width,)
        for i in range(count):
            shapes[f"{tower}transformer.resblocks.{i}.ln_1.weight"] = (width,)
    config = open_clip.clip_sizes({k: np.broadcast_to(0, s) for k, s in shapes.items()})
    text, vision = config.text_config, config.vision_config
    assert (text.num_attention_heads, vision.num_attention_heads) == (16, 16)
    assert (vision.image_size, vision.patch_size, text.eos_token_id) == (224, 14, 49407)
    assert parity.count(parity.abstract(ClipModel, config)[1]) == 986_109_441


def test_what_a_file_lacks_is_listed(tmp_path):
    state = {name: np.array(x, order="C") for name, x in parity.arrays(reference.random()).items()}
    del state["visual.ln_post.bias"], state["transformer.resblocks.1.attn.in_proj_weight"]
    state["extra"] = np.zeros(3, "f")
    save_file(state, tmp_path / "a.safetensors")
    give = lambda: folders.open_clip_to_folder(
        str(tmp_path / "model"), checkpoint=str(tmp_path / "a.safetensors"), tokenizer="none"
    )
    with pytest.raises(
        ValueError, match=r"a\.safetensors: not an OpenCLIP: missing: .*q_proj"
    ) as e:
        give()
    assert "vision_model.post_layernorm.bias" in str(e.value) and "place for: extra" in str(e.value)
    save_file({"other": np.zeros(3, "f")}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"missing: token_embedding\.weight, missing: positional"):
        give()
    assert not (tmp_path / "model").exists()


def test_the_authors_image_model_converts(tmp_path):
    words = write_encoder("clip", tmp_path / "words")
    theirs = reference.random(words=Tokenizer.from_folder(words).vocab_size, joint=48)
    state = {
        f"model.diffusion_model.{k}": v for k, v in named_weights.state_dict("unet_small").items()
    }
    autoencoder = named_weights.state_dict("autoencoder_small")
    state |= {f"first_stage_model.{k}": v for k, v in autoencoder.items()}
    state |= {f"cond_stage_model.model.{k}": v for k, v in parity.arrays(theirs).items()}
    state |= {
        "cond_stage_model.model.attn_mask": np.zeros((77, 77)),
        "betas": np.linspace(0.00085**0.5, 0.0120**0.5, 1000, dtype="f") ** 2,
        "scale_factor": np.float32(0.7),
    }
    state = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    torch.save({"state_dict": state}, tmp_path / "ta54.ckpt")
    given = dict(checkpoint=str(tmp_path / "ta54.ckpt"), tokenizer=str(words))
    folder = folders.released_to_folder(str(tmp_path / "model"), **given)

    unet = networks.load_config(folder, "unet")
    assert (unet.block_out_channels, unet.num_heads) == ((32, 64), (1, 2))  # of 32 channels
    tensors = released.unet_from_ldm(named_weights.state_dict("unet_small"))
    np.testing.assert_equal(
        torch_layout.to_torch(networks.load_network(folder, "unet")[1]), tensors
    )
    assert networks.load_config(folder, "vae").scaling_factor == np.float32(0.7)
    ours = open_conditioner(folder)
    assert isinstance(ours, GlobalConditioner) and ours.norm == "normalized"
    ids = ours.prepare(["a crow caws", ""])
    seen = ours.prepare_images([[np.zeros((9, 9, 3), "u1")], [np.full((9, 9, 3), 200, "u1")]])
    wanted = reference.embeddings(theirs, ids, seen["pixels"][:, 0])
    for condition, embedding in zip((ids, seen), wanted, strict=True):
        embedding = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
        parity.assert_close(ours.encode(ours.params, condition)[:, 0], embedding)

    with pytest.raises(ValueError, match=r"--clap: .*ta54\.ckpt has a CLIP and no CLAP"):
        folders.released_to_folder(str(tmp_path / "other"), clap="a.pth", **given)
    with pytest.raises(ValueError, match="no text_projection; the release's layout holds"):
        folders.folder_to_released(str(folder), str(tmp_path / "back.ckpt"))
    del state["cond_stage_model.model.visual.proj"], state["model.diffusion_model.out.2.bias"]
    torch.save({"state_dict": state}, tmp_path / "ta54.ckpt")
    with pytest.raises(ValueError, match=r"missing: model\.diffusion_model\.out\.2\.bias") as error:
        folders.released_to_folder(str(tmp_path / "other"), **given)
    assert "missing: cond_stage_model.model.visual_projection.weight" in str(error.value)
