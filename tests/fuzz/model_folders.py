"""Model folders: every value of every JSON file, every file, the weights and the tokenizer."""

import functools
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

import maa_jax
from tests.conftest import write_tiny_model
from tests.fuzz.frame import Case

LARGE = 300

# What stands where a value of a JSON file belongs.
VALUES: list[Any] = [None, True, False, "", "8", "a\nb", "../../etc", [], {}, [1, 2], [None], [[1]]]
VALUES += [{"a": 1}, 0, -1, 1, 2, 3, 7, 64, 1000, 10**5, 10**9, 10**10, 2**31, 2**63, 10**400]
VALUES += [0.5, -0.5, 1e-30, 1e30, 1.5, float("nan"), float("inf"), "x" * 10**5, list(range(2000))]
# What stands where a file belongs.
CONTENTS = [b"", b"[]", b"null", b"3", b'"a"', b"{}", b"{", b"[" * 200_000, b'{"a":' * 200_000]
CONTENTS += [
    b"\xff\xfe\x00",
    b"\xef\xbb\xbf{}",
    b'{"a": 1, "a": 2}',
    b'{"a": 1' + b"0" * 5000 + b"}",
]
CONTENTS += [b"\xff" * 8 + b"{}", (2**40).to_bytes(8, "little") + b"{}" * 100]


@functools.cache
def base() -> pathlib.Path:
    """Returns the folder of a small model, one of whose networks is kept in two files."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="maa-fuzz-"))
    model = write_tiny_model(folder / "model")
    where = model / "text_encoder"
    tensors = load_file(where / "model.safetensors")
    (where / "model.safetensors").unlink()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {key: names[i % 2] for i, key in enumerate(tensors)}
    for name in names:
        part = {key: value for key, value in tensors.items() if index[key] == name}
        save_file(part, where / name, metadata={"format": "pt"})
    content = {"metadata": {}, "weight_map": index}
    (where / "model.safetensors.index.json").write_text(json.dumps(content))
    return model


def pick(rng, choices):
    return choices[rng.integers(len(choices))]


def places(content: Any, path: tuple = ()) -> list[tuple]:
    """Returns the paths of all values in a JSON file's content, but one of each long table."""
    found = [path] if path else []
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in list(items)[:40]:
        inner = isinstance(value, dict | list)
        found += places(value, (*path, key)) if inner else [(*path, key)]
    return found


def json_value(rng, model):
    """Puts a wrong value into a JSON file, takes one out, or adds one."""
    file = pick(rng, sorted(model.rglob("*.json")))
    content = json.loads(file.read_text())
    *parents, last = pick(rng, places(content))
    node = content
    for key in parents:
        node = node[key]
    value = pick(rng, VALUES)
    how = pick(rng, ["replaced", "replaced", "replaced", "removed", "added"])
    if how == "removed":
        del node[last]
    elif how == "added" and isinstance(node, dict):
        node[pick(rng, ["num_heads", "hidden_act", "../x", "..", "extra", "", "a" * 300])] = value
    else:
        node[last] = value
    file.write_text(json.dumps(content))
    return Case(f"{file.relative_to(model)}: {last!r} {how}, {str(value)[:30]}", model)


def file_content(rng, model):
    """Cuts a file, flips its bytes, or gives it another content."""
    file = pick(rng, sorted(p for p in model.rglob("*") if p.is_file()))
    data = file.read_bytes()
    how = pick(rng, ["cut", "flipped", "flipped", "swapped", "content", "content"])
    if how == "cut":
        data = data[: rng.integers(len(data))]
    elif how == "flipped":
        changed = bytearray(data)
        for at in rng.integers(min(len(data), pick(rng, [8, 200, len(data)])), size=3):
            changed[at] ^= int(rng.integers(1, 256))
        data = bytes(changed)
    elif how == "swapped":
        data = pick(rng, sorted(p for p in model.rglob("*") if p.is_file())).read_bytes()
    else:
        data = pick(rng, CONTENTS)
    file.write_bytes(data)
    return Case(f"{file.relative_to(model)}: {how}", model)


def no_file(rng, model):
    """Puts something else than a file in a file's place."""
    file = pick(rng, sorted(p for p in model.rglob("*") if p.is_file()))
    file.unlink()
    how = pick(rng, ["missing", "fifo", "folder", "loop", "device", "outside", "case"])
    if how == "fifo":
        os.mkfifo(file)
    elif how == "folder":
        file.mkdir()
    elif how == "loop":
        file.symlink_to(file)
    elif how == "device":
        file.symlink_to("/dev/zero")
    elif how == "outside":
        file.symlink_to(base() / file.relative_to(model))
    elif how == "case":
        shutil.copy(base() / file.relative_to(model), file.with_name(file.name.upper()))
    needed = file.name not in ("vocab.txt", "tokenizer_config.json")
    return Case(f"{file.relative_to(model)}: {how}", model, broken=needed)


def weights(rng, model):
    """Changes a tensor's type, shape, name or values."""
    file = pick(rng, sorted(model.rglob("*.safetensors")))
    tensors = load_file(file)
    name = pick(rng, sorted(tensors))
    value = tensors[name].copy()
    how = pick(rng, ["type", "type", "shape", "name", "gone", "more", "values", "values", "copied"])
    detail: Any = ""
    if how == "type":
        detail = pick(rng, [bool, "u1", "i1", "i8", "u4", "f8", "f2", jnp.bfloat16])
        tensors[name] = value.astype(detail)
    elif how == "shape":
        detail = pick(rng, ["flat", "padded", "empty", "scalar"])
        shapes = {"flat": value.ravel(), "padded": value[None], "empty": value[:0]}
        tensors[name] = shapes.get(detail, np.zeros((), np.float32))
    elif how in ("name", "gone"):
        del tensors[name]
        if how == "name":
            tensors[name + ".weight"] = value
    elif how == "more":
        tensors["stray"] = value
    elif how == "values":
        detail = pick(rng, [np.nan, np.inf, -np.inf, 3e38, 1e20, -1.0, 0.0])
        value.flat[rng.integers(value.size)] = detail
        tensors[name] = value if rng.random() < 0.5 else np.full_like(value, detail)
    else:
        other = pick(rng, sorted(model.rglob("*.safetensors")))
        tensors = load_file(other) | tensors
    save_file(tensors, file, metadata={"format": "pt"})
    odd = detail in (bool, "u1", "i1", "i8", "u4") or how in ("gone", "name")
    broken = odd and name not in ("mean", "scale")  # which nothing reads
    return Case(f"{file.relative_to(model)}: {name} {how} {detail}", model, broken)


def tokenizer(rng, model):
    """Contradicts the tokenizer's tables."""
    file = model / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    how = pick(rng, ["id", "regex", "template", "pieces", "unknown", "few", "normalizer", "added"])
    vocab, processor = content["model"]["vocab"], content["post_processor"]
    broken = True
    if how == "id":
        vocab["crow"] = pick(rng, [len(vocab) + 1, 10**6, 2**31, 2**32 - 1])
    elif how == "regex":
        pattern = {"Regex": pick(rng, ["(", "[", "(?<", "*", "\\p{X}"])}
        split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        content["pre_tokenizer"] = split
    elif how == "template":
        processor["special_tokens"]["[CLS]"]["ids"] = [pick(rng, [10**4, 2**32 - 1])]
    elif how == "pieces":
        processor["special_tokens"] = {}
    elif how == "unknown":
        content["model"]["unk_token"] = pick(rng, ["nothing", "", "[CLS]"])
        broken = False
    elif how == "few":
        content["model"]["vocab"] = dict(list(vocab.items())[: pick(rng, [0, 1, 5])])
        broken = False
    elif how == "normalizer":
        content["normalizer"] = pick(rng, [None, {"type": "Lowercase"}, {"type": "None"}, 3, []])
        broken = False
    else:
        content["added_tokens"][0]["id"] = pick(rng, [-1, 10**6, 2**40])
        broken = False
    file.write_text(json.dumps(content))
    return Case(f"tokenizer: {how}", model, broken)


def shards(rng, model):
    """Leads the index of a network in two files astray."""
    where = model / "text_encoder"
    file = where / "model.safetensors.index.json"
    content = json.loads(file.read_text())
    index = content["weight_map"]
    key = pick(rng, sorted(index))
    how = pick(rng, ["path", "other", "gone", "more", "type", "copied"])
    if how == "path":
        outside = ["/etc/passwd", "../unet/diffusion_pytorch_model.safetensors", "..", ".", "a/b"]
        index[key] = pick(rng, [*outside, str(where / index[key]), "x" * 300 + ".safetensors"])
    elif how == "other":
        index[key] = next(name for name in index.values() if name != index[key])
    elif how == "gone":
        del index[key]
    elif how == "more":
        index["stray"] = index[key]
    elif how == "type":
        content["weight_map"] = pick(rng, [None, [], {}, 3, "a", {key: 3}, {key: None}])
    else:
        first, second = (where / name for name in sorted(set(index.values())))
        save_file(load_file(second) | load_file(first), second, metadata={"format": "pt"})
    file.write_text(json.dumps(content))
    return Case(f"index of shards: {how}", model, broken=True)


MUTATIONS = [json_value] * 6 + [file_content] * 3 + [weights] * 3
MUTATIONS += [no_file, tokenizer, tokenizer, shards]


def make(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    """Writes one model folder."""
    model = shutil.copytree(base(), folder / "model")
    return pick(rng, MUTATIONS)(rng, model)


def use(path: pathlib.Path) -> None:
    """Reads all of it, and generates a short sound."""
    pipe = maa_jax.Pipeline.from_pretrained(path)
    pipe.load(ranking=True)
    seconds = min(0.5, pipe.max_duration)
    (wav,) = pipe(["a crow caws twice"], seed=0, steps=2, duration=seconds)
    assert wav.shape == (round(seconds * pipe.sample_rate),), wav.shape
    assert np.isfinite(wav).all(), "not finite"


def warm() -> None:
    """Compiles the networks of the model that all cases are made from."""
    use(base())
