"""Released files for `convert --from=released`: checkpoints, CLAPs and vocoders, cut, changed and
made to run code, to fill the memory, or to lack what a reader takes for granted."""

import functools
import io
import json
import pathlib
import pickle
import shutil
import struct
import zipfile
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save

from maa_jax.convert import clap as clap_names
from maa_jax.convert import folders, released, vocoders
from maa_jax.diffusion.schedule import Schedule
from maa_jax.model_folder import networks, torch_layout
from maa_jax.models.autoencoder import AutoencoderConfig
from maa_jax.models.bert import BertConfig
from maa_jax.models.bigvgan import BigVGANConfig
from maa_jax.models.clap import ProjectionConfig
from maa_jax.models.hifigan import HifiGanConfig
from maa_jax.models.unet import UNetConfig
from maa_jax.text.tokenizer import build_tokenizer
from tests.fuzz.audio_files import cut, flip, garbage, insert, zeros
from tests.fuzz.frame import Case

LARGE = 200

_PARTS: dict[str, Any] = {
    "unet": UNetConfig(
        block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=16, num_heads=8
    ),
    "vae": AutoencoderConfig(block_out_channels=(32, 32), layers_per_block=1),
    "text_encoder": BertConfig(
        vocab_size=96,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=32,
        max_position_embeddings=80,
    ),
    "text_projection": ProjectionConfig(64, 16),
}
_SMALL: dict[str, Any] = dict(
    upsample_initial_channel=16,
    upsample_rates=(16, 16),
    upsample_kernel_sizes=(32, 32),
    resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1, 3),),
)
_VOCODERS: dict[str, Any] = {
    "bigvgan": BigVGANConfig(**_SMALL),
    "hifigan": HifiGanConfig(**_SMALL),
}


def _random(config: Any) -> dict[str, np.ndarray]:
    """Returns tensors of a network under PyTorch's names."""
    rng = np.random.default_rng(0)
    shapes = torch_layout.shapes(networks.define(config)[1])
    return {name: rng.normal(0, 0.1, shape).astype("f") for name, shape in shapes.items()}


@functools.cache
def _arrays() -> dict[str, np.ndarray]:
    parts = {name: _random(config) for name, config in _PARTS.items()}
    return released.to_checkpoint(parts, Schedule(), 0.7)


def checkpoint() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(x)) for name, x in _arrays().items()}


@functools.cache
def _vocoder(kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the sizes and the generator of a released vocoder."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        config = _VOCODERS[kind]
        params = torch_layout.from_torch(networks.abstract(config), _random(config))
        vocoders.write_vocoder(folder, config, params)
        sizes = yaml.safe_load(pathlib.Path(folder, "args.yml").read_text())
        content = torch.load(pathlib.Path(folder, "best_netG.pt"), weights_only=True)
    return sizes, {name: x.numpy() for name, x in content["generator"].items()}


def generator(kind: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    sizes, tensors = _vocoder(kind)
    return dict(sizes), {name: torch.from_numpy(x.copy()) for name, x in tensors.items()}


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


def _fewer(rng, state):
    names = list(
        rng.choice(list(state), min(len(state), int(rng.choice([1, 3, 50]))), replace=False)
    )
    return f"without {names[0]} and others", {k: v for k, v in state.items() if k not in names}


def _more(rng, state):
    names = ["x", "model.diffusion_model.x", "first_stage_model.encoder.x.weight", "module.x", ""]
    name = str(rng.choice([*names, "cond_stage_model.audio_encoder.x", "input_blocks.9"]))
    return f"with {name!r}", state | {name: torch.zeros(3)}


def _prefixed(rng, state):
    return "every name with a prefix", {f"module.{k}": v for k, v in state.items()}


def _numbered(rng, state):
    """Block numbers that no network has."""
    number = str(rng.choice(["99", "999999999", "1" * 30, "1" * 5000, "-1"]))
    changed = {k.replace(".1.", f".{number}."): v for k, v in state.items()}
    return f"blocks numbered {number[:12]}", changed


def _retyped(rng, state):
    name = str(rng.choice(list(state)))
    kinds = [torch.int8, torch.uint8, torch.bool, torch.int64, torch.complex64, torch.float64]
    kind = kinds[rng.integers(len(kinds))]
    return f"{name} as {kind}", state | {name: state[name].to(kind)}


def _reshaped(rng, state):
    name = str(rng.choice(list(state)))
    value = state[name]
    shapes = [value.flatten(), value[None], value.flatten()[:0], value.flatten()[:1]]
    i = int(rng.integers(len(shapes)))
    return f"{name} with the shape {tuple(shapes[i].shape)}", state | {name: shapes[i]}


def _valued(rng, state):
    name = str(rng.choice(list(state) + ["betas", "scale_factor"] * 20))
    if name not in state:
        return "whole", state
    value = float(rng.choice([np.nan, np.inf, -np.inf, 3e38, 0, -1, 1e-38]))
    filled = state[name].clone()
    filled.reshape(-1)[-1 if filled.numel() else slice(0)] = value
    return f"{name} with {value}", state | {name: filled}


def _not_tensors(rng, state):
    name = str(rng.choice(list(state)))
    values = [None, 3, 0.5, "x", [1.0, 2.0], {"a": 1}, (), b"x"]
    values += [torch.nn.Parameter(state[name].float()), torch.zeros(3).to_sparse()]
    i = int(rng.integers(len(values)))
    return f"{name} as {type(values[i]).__name__}", state | {name: values[i]}


def _halved(rng, state):
    kind = [torch.float16, torch.bfloat16, torch.float64][rng.integers(3)]
    return f"all {kind}", {k: v.to(kind) for k, v in state.items()}


def _parameters(rng, state):
    return "all parameters", {k: torch.nn.Parameter(v) for k, v in state.items()}


def _expanded(rng, state):
    name = str(rng.choice(list(state)))
    size = int(rng.choice([10**4, 10**6, 10**9]))
    return f"{name} expanded {size} times", state | {
        name: state[name][None].expand(size, *state[name].shape)
    }


def _scale(rng, state):
    values = [torch.ones(3), torch.tensor(0.0), torch.tensor(-1.0), torch.tensor(torch.nan)]
    values += [torch.ones(0), torch.tensor([[2.0]]), torch.tensor(2), torch.tensor(torch.inf)]
    i = int(rng.integers(len(values)))
    return f"scale_factor={values[i].tolist()}", state | {"scale_factor": values[i]}


def _betas(rng, state):
    values = [torch.zeros(1000), torch.ones(3), torch.rand(1000), torch.zeros(0), torch.ones(2, 2)]
    values += [torch.linspace(1e-4, 2e-2, 1000), torch.full((10**6,), 0.01), torch.tensor(0.1)]
    i = int(rng.integers(len(values)))
    return f"other betas, {i}", state | {"betas": values[i]}


STATES = [_fewer, _fewer, _more, _prefixed, _numbered, _retyped, _reshaped, _reshaped, _valued]
STATES += [_valued, _not_tensors, _not_tensors, _halved, _parameters, _expanded, _scale, _betas]


def _wrapped(rng, state):
    contents = [
        state, [state], list(state), None, 3, "x", {}, {"state_dict": None}, {"state_dict": {}},
        {"state_dict": [1]}, {"state_dict": {"state_dict": state}}, {1: 2}, {"model": state},
        torch.zeros(3), {"state_dict": state, "epoch": 3, "optimizer_states": [{"a": state}]},
    ]  # fmt: skip
    i = int(rng.integers(len(contents)))
    return f"wrapped as {i}", contents[i]


def _attack(rng, state):
    import builtins
    import os
    import subprocess

    target = "/tmp/maa_jax_fuzz_was_run"
    payloads = [
        Payload(os.system, f"touch {target}"),
        Payload(builtins.exec, f"open({target!r}, 'w')"),
        Payload(builtins.eval, f"open({target!r}, 'w')"),
        Payload(subprocess.Popen, ("touch", target)),
        Payload(builtins.bytearray, 20 << 30),
        Payload(torch.FloatTensor, 10**10),
        Payload(builtins.getattr, "", "upper"),
        Payload(pathlib.Path, "/etc"),
    ]
    i = int(rng.integers(len(payloads)))
    content = {"state_dict": state, "callback": payloads[i]}
    kind = str(rng.choice(["zip", "old", "bare", "protocol 4", "protocol 0"]))
    if kind in ("zip", "old"):
        return f"payload {i}, {kind}", saved(content, _use_new_zipfile_serialization=kind == "zip")
    protocol = {"bare": 2, "protocol 4": 4, "protocol 0": 0}[kind]
    return f"payload {i}, {kind}", pickle.dumps(payloads[i], protocol)


def _bomb(rng, state):
    """A small archive or pickle that asks for much memory."""
    kind = str(rng.choice(["deflated", "deflated pickle", "sizes", "old", "nested", "zip in zip"]))
    buffer = io.BytesIO()
    if kind == "old":
        data = saved(state, _use_new_zipfile_serialization=False)
        data = data.replace(b"K@", b"J\xff\xff\xff\x7f")  # every 64 in its pickles
        return "bomb: old, storages of 8 GB", data
    if kind == "nested":
        deep: Any = ()
        for _ in range(100_000):
            deep = (deep,)
        with zipfile.ZipFile(buffer, "w") as archive:
            # pickle itself refuses to write it
            archive.writestr("a/data.pkl", b"\x80\x02)" + b"\x85" * 100_000 + b".")
            archive.writestr("a/version", "3")
        return "bomb: 100,000 tuples in each other", buffer.getvalue()
    with zipfile.ZipFile(io.BytesIO(saved({"state_dict": state}))) as old:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry in old.namelist():
                content = old.read(entry)
                if kind == "deflated" and entry.endswith("data/0"):
                    content = bytes(300 << 20)
                if kind == "deflated pickle" and entry.endswith("data.pkl"):
                    content = b"\x80\x02" + b"N0" * (100 << 20) + b"N."
                archive.writestr(entry, content)
    data = buffer.getvalue()
    if kind == "sizes":  # of all entries, in the directory
        data = bytearray(data)
        at = -1
        while (at := data.find(b"PK\x01\x02", at + 1)) >= 0:
            data[at + 24 : at + 28] = struct.pack("<I", 2**32 - 2)
        data = bytes(data)
    if kind == "zip in zip":
        outer = io.BytesIO()
        with zipfile.ZipFile(outer, "w") as archive:
            archive.writestr("maa1_full.ckpt", data)
        data = outer.getvalue()
    return f"bomb: {kind}", data


def _other_format(rng, state):
    kind = str(rng.choice(["safetensors", "lfs", "html", "empty", "numpy", "tar", "gzip", "json"]))
    if kind == "safetensors":
        data = save({k: v.contiguous() for k, v in state.items()})
        what, data = [("whole", data), cut(rng, data), flip(rng, data)][rng.integers(3)]
        return f"safetensors, {what}", data
    buffer = io.BytesIO()
    if kind == "numpy":
        np.savez(buffer, a=np.zeros(3))
    elif kind == "tar":
        import tarfile

        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("storages"))
    elif kind == "gzip":
        import gzip

        buffer.write(gzip.compress(saved(state)))
    elif kind == "lfs":
        buffer.write(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n")
    elif kind in ("html", "json"):
        buffer.write(b"<!DOCTYPE html><html>Not found</html>" if kind == "html" else b'{"a": 1}')
    return kind, buffer.getvalue()


def _changed_bytes(rng, state):
    new = bool(rng.integers(2))
    data = saved({"state_dict": state}, _use_new_zipfile_serialization=new)
    mutations = [cut, flip, flip, insert, zeros, garbage]
    what, data = mutations[rng.integers(len(mutations))](rng, data)
    return f"{'zip' if new else 'old'}: {what}", data


def weights(rng, state, key) -> tuple[str, bytes]:
    """Returns a file of weights, and what was done to it."""
    draw = rng.random()
    if draw < 0.5:
        done = []
        for _ in range(int(rng.choice([1, 1, 2]))):
            what, new = STATES[rng.integers(len(STATES))](rng, state)
            done.append(what)
            state = new if all(isinstance(x, torch.Tensor) for x in new.values()) else state
        return ", ".join(done), saved({key: new})
    if draw < 0.6:
        what, content = _wrapped(rng, state)
        return what, saved(content)
    make_ = [_attack, _bomb, _other_format, _changed_bytes, _changed_bytes]
    return make_[rng.integers(len(make_))](rng, state)


SETTINGS = [
    ("fmax", [7600, 11025, None, "8000", [8000], float("nan")]),
    ("fmin", [20, -1]),
    ("n_fft", [2048, "1024"]),
    ("win_size", [512]),
    ("hop_size", [200]),
    ("num_mels", [100, 0, None]),
    ("sampling_rate", [22050, "16000", 0]),
    ("resblock", ["2", 2, None]),
    ("snake_logscale", [False]),
    ("upsample_rates", [[8, 8], [], None, 256, "88", [16, -16], [10**9, 16], [[16, 16]], {"a": 1}]),
    ("upsample_kernel_sizes", [[32], [3, 3], [10**12, 32], [1.5, 2]]),
    ("upsample_initial_channel", [0, -16, 10**12, "16", 1.5, None, 32, True]),
    ("resblock_kernel_sizes", [[2], [], [10**9], [[3]]]),
    ("resblock_dilation_sizes", [[[1]], [1, 3], [[10**9, 3]], [[]]]),
]
TEXTS = ["", "[]", "null", "- a\n- b", "a: [", "!!python/object/apply:os.system ['true']", "\t{"]
TEXTS += ["a: &a [*a]", "[" * 50_000, "x" * 2_000_000, "a: b: c", "\x00", "3", "&a [*a, *a]"]


def _vocoder_case(rng, folder):
    kind = str(rng.choice(list(_VOCODERS)))
    sizes, state = generator(kind)
    name, file = str(rng.choice(["args.yml", "config.json"])), "best_netG.pt"
    draw, path = rng.random(), folder / "there"
    path.mkdir()
    broken = False
    data = saved({"generator": state})
    write = lambda sizes: (
        yaml.safe_dump(sizes) if name == "args.yml" else json.dumps(sizes)
    ).encode()
    if draw < 0.35:
        key, values = SETTINGS[rng.integers(len(SETTINGS))]
        value = values[rng.integers(len(values))]
        what, text = f"{key}={value}", write(sizes | {key: value})
        broken = not (key == "fmax" and value is None) and not (key == "num_mels" and value is None)
        broken = broken and (key, value) != ("resblock", 2)
    elif draw < 0.45:
        value = TEXTS[rng.integers(len(TEXTS))]
        what, text, broken = f"{name}: {value[:20]!r}", value.encode(), True
    elif draw < 0.5:
        gone = str(rng.choice(vocoders._SHARED))
        del sizes[gone]
        what, text, broken = f"without {gone}", write(sizes), True
    elif draw < 0.55:
        what, text = "several files", write(sizes)
        for other in [["g_00000001", "g_00000002"], ["generator_a"], ["g_1", "generator"]][
            rng.integers(3)
        ]:
            (path / other).write_bytes(data)
    else:
        what, data = weights(rng, state, str(rng.choice(["generator", "state_dict"])))
        text = write(sizes)
    (path / name).write_bytes(text)
    (path / file).write_bytes(data)
    return Case(f"{kind}: {what}", path, broken)


def make(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    """Writes one released file, or a vocoder's folder."""
    draw = rng.random()
    if draw < 0.4:
        return _vocoder_case(rng, folder)
    if draw < 0.45:
        path = folder / "clap.pth"
        towers = {f"{prefix}x.weight": torch.zeros(2) for prefix in clap_names.PREFIXES.values()}
        what, data = weights(rng, towers, "model")
        path.write_bytes(data)
        return Case(f"clap: {what}", path, broken=True)
    path = folder / "maa1_full.ckpt"
    what, data = weights(rng, checkpoint(), "state_dict")
    path.write_bytes(data)
    return Case(f"checkpoint: {what}", path)


@functools.cache
def _good() -> pathlib.Path:
    import atexit
    import tempfile

    folder = pathlib.Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    build_tokenizer(["a crow caws", "rain falls"], folder / "tokenizer", 96)
    (folder / "maa1_full.ckpt").write_bytes(saved({"state_dict": checkpoint()}))
    return folder


def use(path: pathlib.Path) -> None:
    """Converts it; a failure leaves nothing, and a model's numbers are finite."""
    out, good = path.parent / "models" / "out", _good()
    given: dict[str, Any] = {"tokenizer": str(good / "tokenizer")}
    if path.is_dir():
        given["vocoder"] = str(path)
    elif path.suffix == ".pth":
        given |= {"checkpoint": str(good / "maa1_full.ckpt"), "clap": str(path)}
    else:
        given["checkpoint"] = str(path)
    try:
        folders.released_to_folder(str(out), **given)
    except BaseException:
        assert not out.exists(), f"left behind: {sorted(out.rglob('*'))}"
        raise
    finally:
        assert not pathlib.Path("/tmp/maa_jax_fuzz_was_run").exists(), "the payload was run"
    for part in out.glob("*/config.json"):
        _, params = networks.load_network(out, part.parent.name)
        for _, value in torch_layout._walk(params):
            assert np.isfinite(value).all(), f"{part.parent.name}: not finite"


def warm() -> None:
    """Converts good files once."""
    _good()
    for kind in _VOCODERS:
        generator(kind)
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "maa1_full.ckpt")
        path.write_bytes((_good() / "maa1_full.ckpt").read_bytes())
        use(path)
