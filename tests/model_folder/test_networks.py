import dataclasses
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from maa_jax.files import FolderError
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import content_hash, load_index
from maa_jax.model_folder.model import read_model
from maa_jax.models.rngs import InitRngs

NETWORKS = (
    "unet",
    "vae",
    "vocoder",
    "text_encoder",
    "text_projection",
    "audio_encoder",
    "audio_projection",
)


@pytest.mark.parametrize("name", NETWORKS)
def test_roundtrip(tiny_model, tmp_path, name):
    _, params = networks.load_network(tiny_model, name)
    networks.save_network(tmp_path, name, networks.load_config(tiny_model, name), params)
    for path in sorted((tiny_model / name).iterdir()):
        assert (tmp_path / name / path.name).read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]  # no temporary folder is left


def test_half_precision_storage_halves_the_file_and_loads_as_float32(tiny_model, tmp_path):
    _, params = networks.load_network(tiny_model, "unet")
    networks.save_network(
        tmp_path, "unet", networks.load_config(tiny_model, "unet"), params, "float16"
    )
    file = "unet/diffusion_pytorch_model.safetensors"
    assert {v.dtype for v in load_file(tmp_path / file).values()} == {np.dtype("float16")}
    _, half = networks.load_network(tmp_path, "unet")
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(half), strict=True):
        assert b.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_storage_that_cannot_hold_a_weight_is_refused(tiny_model, tmp_path):
    _, params = networks.load_network(tiny_model, "text_projection")
    config = networks.load_config(tiny_model, "text_projection")
    params["linear1"]["kernel"] = params["linear1"]["kernel"] + 1e6
    with pytest.raises(ValueError, match=r"linear1\.weight"):
        networks.save_network(tmp_path, "text_projection", config, params, "float16")
    with pytest.raises(ValueError, match=r"int8.*float16"):
        networks.save_network(tmp_path, "text_projection", config, params, "int8")
    assert not any(tmp_path.iterdir())


def test_a_failed_write_leaves_what_was_there(model, monkeypatch):
    before = content_hash(model)
    _, params = networks.load_network(model, "unet")
    config = networks.load_config(model, "unet")

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(networks, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        networks.save_network(model, "unet", config, params)
    assert content_hash(model) == before
    assert not list(model.glob(".*"))


def test_a_part_is_replaced_and_what_is_not_its_own_stays(model, tmp_path):
    """Also through symbolic links, which stay links."""
    (model / "vocoder").rename(tmp_path / "elsewhere")
    (model / "vocoder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "sounds").mkdir()
    (tmp_path / "elsewhere" / "sounds" / "crow.wav").touch()
    (tmp_path / "elsewhere" / "model-00001-of-00002.safetensors").touch()
    config, (_, params) = (
        networks.load_config(model, "vocoder"),
        networks.load_network(model, "vocoder"),
    )
    networks.save_network(model, "vocoder", config, jax.tree.map(np.zeros_like, params))
    assert (model / "vocoder").is_symlink()
    assert sorted(p.name for p in (tmp_path / "elsewhere").iterdir()) == [
        "config.json", "model.safetensors", "sounds"
    ]  # fmt: skip
    assert (tmp_path / "elsewhere" / "sounds" / "crow.wav").exists()
    assert not any(x.any() for x in jax.tree.leaves(networks.load_network(model, "vocoder")[1]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "model"]
    (model / "unet.json").touch()
    with pytest.raises(FolderError, match=r"unet\.json is a file"):
        networks.save_network(model, "unet.json", config, params)


def test_init_rngs_give_every_parameter_its_own_key():
    def make(key):
        rngs = InitRngs(key)
        return nnx.state(nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(2)]))

    a, b = (jax.tree.leaves(jax.jit(make)(jax.random.key(seed))) for seed in (0, 1))
    kernels = [x for x in a + b if x.ndim == 2]
    assert len(kernels) == 4
    assert len({np.asarray(x).tobytes() for x in kernels}) == 4


def test_missing_parts_are_all_named(model, tmp_path):
    with pytest.raises(FolderError, match=r"model_index\.json is missing"):
        load_index(tmp_path)
    (model / "unet" / "config.json").unlink()
    (model / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    shutil.rmtree(model / "vocoder")
    with pytest.raises(FolderError) as e:
        load_index(model, parts=("nonsense",), meta=("colour",))
    for missing in (
        "unet/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "vocoder/config.json",
        "vocoder/model.safetensors",
        "nonsense/",
        "'colour'",
    ):
        assert missing in str(e.value)
    with pytest.raises(FolderError, match=r"unet.config\.json is missing"):
        networks.load_network(model, "unet")
    with pytest.raises(FolderError, match=r"vae.*safetensors is missing"):
        networks.load_network(model, "vae")


def test_broken_files_are_named(model):
    weights = model / "vocoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(FolderError, match=r"vocoder.*broken or truncated"):
        networks.load_network(model, "vocoder")
    (model / "unet" / "config.json").write_text('{"in_channels": 4,')
    with pytest.raises(FolderError, match=r"unet.config\.json is not JSON"):
        networks.load_network(model, "unet")


def test_loading_is_strict(model):
    path = model / "text_projection" / "model.safetensors"
    tensors = load_file(path)
    tensors["stray.weight"] = tensors.pop("linear2.weight")
    tensors["linear1.weight"] = tensors["linear1.weight"][:, :-1].copy()
    save_file(tensors, path)
    with pytest.raises(ValueError) as e:
        networks.load_network(model, "text_projection")
    for name in ("text_projection", "linear2.weight", "stray.weight", "linear1.weight"):
        assert name in str(e.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.astype(np.int8), "type of linear1.weight: I8, expected a float"),
        (lambda v: v.astype(bool), "type of linear1.weight: BOOL, expected a float"),
        (lambda v: v.astype(np.int64), "type of linear1.weight: I64, expected a float"),
        (lambda v: np.where(v == v.max(), np.nan, v), "linear1.weight: NaN"),
        (lambda v: np.where(v == v.max(), -np.inf, v), "linear1.weight: NaN, or beyond float32"),
        (lambda v: v.astype(np.float64) * 1e300, "linear1.weight: NaN, or beyond float32"),
    ],
)
def test_weights_that_no_network_has_are_refused(model, change, message):
    path = model / "text_projection" / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"linear1.weight": change(tensors["linear1.weight"])}, path)
    with pytest.raises(FolderError, match=f"text_projection.*\n?.*{message}"):
        networks.load_network(model, "text_projection")


def test_a_negative_variance_is_refused(model):
    path = model / "audio_encoder" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("running_var"))
    save_file(tensors | {name: -tensors[name]}, path)
    with pytest.raises(FolderError, match=f"{name}: a negative variance"):
        networks.load_network(model, "audio_encoder")


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("text_encoder", "num_hidden_layers", 10**9),
        ("text_encoder", "layer_norm_eps", -1),
        ("text_encoder", "hidden_size", "16"),
        ("text_encoder", "hidden_size", None),
        ("text_encoder", "num_attention_heads", 0),
        ("text_projection", "dropout", [0.5]),
        ("vae", "layers_per_block", 10**9),
        ("vae", "scaling_factor", 0),
        ("vae", "scaling_factor", -1.0),
        ("vae", "block_out_channels", [8] * 1000),
        ("vae", "norm_num_groups", 3),
        ("unet", "layers_per_block", 10**9),
        ("unet", "attention_head_dim", "8"),
        ("unet", "attention_head_dim", 2.5),
        ("unet", "in_channels", True),
        ("unet", "cross_attention_dim", 10**400),
        ("vocoder", "upsample_rates", [8, 8, 2, 10**9]),
        ("vocoder", "upsample_rates", 256),
        ("vocoder", "resblock_kernel_sizes", [4]),
        ("vocoder", "log", {}),
        ("audio_encoder", "hop_length", 0),
        ("audio_encoder", "channels", [4, None, 16]),
    ],
)
def test_a_wrong_value_in_a_config_is_named_before_a_network_is_built(model, part, key, value):
    path = model / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(FolderError) as e:
        networks.load_config(model, part)
    assert str(path) in str(e.value) and key in str(e.value)


def test_a_layout_of_this_project_states_every_value(model):
    path = model / "audio_encoder" / "config.json"
    content = json.loads(path.read_text())
    del content["hop_length"]
    path.write_text(json.dumps(content))
    with pytest.raises(FolderError, match="hop_length is missing"):
        networks.load_config(model, "audio_encoder")


def test_a_part_of_another_class_is_refused(model):
    shutil.rmtree(model / "unet")
    shutil.copytree(model / "vae", model / "unet")
    with pytest.raises(FolderError, match=r"unet.config\.json.*'AutoencoderKL', but unet/ takes"):
        networks.load_config(model, "unet")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"3",
        b'{"a": 1',
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"\xff\xfe",
        b'{"in_channels": 4, "in_channels": 8}',
        b'{"in_channels": NaN}',
        b'{"in_channels": 1' + b"0" * 5000 + b"}",
    ],
)
def test_a_file_that_is_no_json_object_is_named(model, content):
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        before = (model / name).read_bytes()
        (model / name).write_bytes(content)
        with pytest.raises(FolderError, match=name):
            read_model(model)
        (model / name).write_bytes(before)


@pytest.mark.parametrize("name", ["unet/config.json", "vocoder/model.safetensors"])
def test_only_regular_files_of_the_folder_are_read(model, tmp_path, name):
    part, path = name.split("/")[0], model / name
    elsewhere = shutil.move(path, tmp_path / path.name)
    for put in (
        lambda: os.mkfifo(path),
        lambda: path.mkdir(),
        lambda: path.symlink_to(path),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to(elsewhere),
    ):
        put()
        with pytest.raises(FolderError, match=name):
            networks.load_network(model, part)
        path.rmdir() if path.is_dir() else path.unlink()
    # A link to another file of the folder, as in a repository with annexed files.
    inside = shutil.move(elsewhere, model / "annexed")
    path.symlink_to(inside)
    networks.load_network(model, part)


def test_a_network_that_its_layout_cannot_hold_is_not_written(tiny_model, tmp_path):
    config, (_, params) = (
        networks.load_config(tiny_model, "vae"),
        networks.load_network(tiny_model, "vae"),
    )
    wider = dataclasses.replace(config, layers_per_block=2)
    with pytest.raises(ValueError, match=r"vae: .*do not fit[^$]*not written"):
        networks.save_network(tmp_path, "vae", wider, params)
    assert not any(tmp_path.iterdir())


def shard(folder, dtype=np.float32):
    """Splits a folder's model.safetensors in two, with an index, as large models are kept."""
    tensors = {k: v.astype(dtype) for k, v in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    where = {k: f"model-{1 + i % 2:05}-of-00002.safetensors" for i, k in enumerate(tensors)}
    for file in set(where.values()):
        part = {k: v for k, v in tensors.items() if where[k] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sorted(set(where.values()))


def test_sharded_weights_are_read_and_missing_shards_named(model):
    _, before = networks.load_network(model, "text_encoder")
    shards = shard(model / "text_encoder")
    _, after = networks.load_network(model, "text_encoder")
    jax.tree.map(np.testing.assert_array_equal, before, after)
    load_index(model)
    for name in shards:
        (model / "text_encoder" / name).unlink()
    with pytest.raises(FolderError, match="|".join(shards)) as e:
        networks.load_network(model, "text_encoder")
    assert all(name in str(e.value) for name in shards)
    with pytest.raises(FolderError, match=f"text_encoder/{shards[1]}"):
        load_index(model)


@pytest.mark.parametrize(
    "file", ["/etc/passwd", "../vae/diffusion_pytorch_model.safetensors", "..", 3, None, "x" * 999]
)
def test_an_index_of_shards_names_files_beside_it(model, file):
    shard(model / "text_encoder")
    path = model / "text_encoder" / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    content["weight_map"]["embeddings.LayerNorm.bias"] = file
    path.write_text(json.dumps(content))
    for read in (load_index, lambda model: networks.load_network(model, "text_encoder")):
        with pytest.raises(FolderError, match=r"index\.json: weight_map names"):
            read(model)


def test_a_tensor_in_two_shards_is_refused(model):
    first, second = (model / "text_encoder" / name for name in shard(model / "text_encoder"))
    twice = dict([next(iter(load_file(first).items()))])
    save_file(load_file(second) | twice, second, metadata={"format": "pt"})
    with pytest.raises(
        FolderError, match=r"00002-of-00002.*which model.*index\.json has elsewhere"
    ):
        networks.load_network(model, "text_encoder")


def test_bfloat16_weights_are_read_as_float32(model):
    _, before = networks.load_network(model, "text_encoder")
    shard(model / "text_encoder", jnp.bfloat16)
    _, after = networks.load_network(model, "text_encoder")
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert b.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=4e-3)


def test_a_folder_of_one_network_loads_strictly_by_itself(model):
    folder = model / "text_encoder"
    _, params = networks.load_pretrained(folder)
    jax.tree.map(
        np.testing.assert_array_equal, params, networks.load_network(model, "text_encoder")[1]
    )
    # The file of BERT's pre-training: other names, and heads.
    tensors = load_file(folder / "model.safetensors")
    old = {
        "bert." + k.replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in tensors.items()
    }
    save_file(old | {"cls.predictions.bias": np.zeros(3, "f")}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    again = networks.load_pretrained(folder)[1]
    jax.tree.map(np.testing.assert_array_equal, params, again)

    key = "encoder.layer.0.output.dense.weight"
    wrong = {k: v for k, v in tensors.items() if k != key} | {"stray": np.zeros(1, "f")}
    wrong["encoder.layer.0.output.dense.bias"] = np.zeros(1, "f")
    save_file(wrong, folder / "model.safetensors")
    with pytest.raises(ValueError, match="3 tensors do not fit") as e:
        networks.load_pretrained(folder)
    for problem in (f"missing: {key}", "no place for: stray", "dense.bias: (1,), expected (16,)"):
        assert problem in str(e.value)


def test_an_unknown_class_says_what_is_known(model):
    path = model / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "UFONet"}))
    with pytest.raises(FolderError, match=r"'UFONet'.*known: UNet2DConditionModel"):
        networks.load_network(model, "unet")
