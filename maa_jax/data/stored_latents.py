"""Latents of a run's training examples, computed once and read from disk in training.

The frozen autoencoder would otherwise encode each clip anew in every step that hears it.

A folder has `index.json` and, for every 1,024 examples of the training stream, in its order, a pair
of files: `RUN-i.npy`, the mean and the log-variance of their posteriors, float32
[examples, height, width, 2 channels], and `RUN-i.jsonl`, a line with the record's index and the
captions of each. RUN is a digest of all that they depend on. A pair that is there is whole, so that
an interrupted computation goes on where it stopped.
"""

import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from maa_jax.checks import differences
from maa_jax.data.config import DataConfig
from maa_jax.devices import share
from maa_jax.files import replace_file, write_json

FOLDER = "latents"  # inside the folder of maa_jax.embed, beside the contexts
_INDEX = "index.json"
_PER_FILE = 1024
_REMEDY = "write it with python -m maa_jax.embed --epochs=1"


def facts(config: DataConfig, contents: Mapping[str, str], seed: int) -> dict[str, Any]:
    """Returns what a run's examples depend on, as JSON values.

    Args:
      config: data config of the run.
      contents: digests of its data, from `datasets.contents`.
      seed: seed of the run.
    """
    found = {
        "seed": seed,
        "samples": config.samples,
        "dataset": [[str(part), part.weight] for part in config.parts()],
        "reprogram": vars(config.reprogram) if config.reprogram.events else "",
        **{f"content of {name}": digest for name, digest in contents.items()},
    }
    return json.loads(json.dumps(found))


def write(
    folder: str | os.PathLike[str],
    count: int,
    read: Callable[[Sequence[int]], Iterable[Mapping[str, Any]]],
    encode: Callable[[np.ndarray], np.ndarray],
    facts: Mapping[str, Any],
    *,
    batch_size: int = 32,
    process_index: int = 0,
    process_count: int = 1,
) -> int:
    """Computes and writes this process's share of the latents; what is there is kept.

    Args:
      folder: folder for the files, to which all processes have access.
      count: number of examples.
      read: function from places in the stream to their examples, in that order; see
        `input_pipeline.training_examples`.
      encode: function from clips [n, samples] to means and log-variances [n, h, w, 2 c].
      facts: what the latents depend on: the examples' `facts` and "autoencoder", the digest of its
        files.
      batch_size: number of clips encoded at a time.
      process_index: index of this process.
      process_count: number of processes.

    Returns:
      The number of examples that this process has computed.

    Raises:
      ValueError: a latent is not finite.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run = _run(facts)
    missing = []  # (the file's stem, the places of its examples)
    for i in share(range(-(-count // _PER_FILE)), process_index, process_count):
        stem = folder / f"{run}-{i:05}"
        places = range(i * _PER_FILE, min((i + 1) * _PER_FILE, count))
        rows, lines = stem.with_suffix(".npy"), stem.with_suffix(".jsonl")
        whole = rows.is_file() and lines.is_file()
        if not whole or lines.read_bytes().count(b"\n") != len(places):
            missing.append((stem, places))
    stream = iter(read([place for _, places in missing for place in places]))
    done = 0
    for stem, places in missing:
        found, told = [], []
        for start in range(0, len(places), batch_size):
            batch = list(itertools.islice(stream, len(places[start : start + batch_size])))
            found.append(encode(np.stack([example["audio"] for example in batch])))
            told += [{"index": int(x["index"]), "captions": list(x["captions"])} for x in batch]
        moments = np.concatenate(found).astype(np.float32, copy=False)
        if not np.isfinite(moments).all():
            bad = np.flatnonzero(~np.isfinite(moments).reshape(len(places), -1).all(axis=1))[0]
            raise ValueError(
                f"the latent of {told[bad]['captions'][0]!r} is not finite: use another autoencoder"
            )
        rows, lines = stem.with_suffix(".npy"), stem.with_suffix(".jsonl")
        with replace_file(rows) as new, new.open("wb") as file:
            np.save(file, moments)
        with replace_file(lines) as new:  # last: by it the pair is known to be whole
            new.write_text("".join(f"{json.dumps(line)}\n" for line in told), "utf-8")
        done += len(places)
    if process_index == 0:
        write_json(folder / _INDEX, {**facts, "run": run, "examples": count})
        for path in [*folder.glob("[!.]*.npy"), *folder.glob("[!.]*.jsonl")]:
            if not path.name.startswith(f"{run}-"):
                path.unlink(missing_ok=True)
    return done


class Latents(Sequence[dict[str, Any]]):
    """The examples of an open folder: `moments`, `index` and `captions`, as `write` got them.

    Args:
      folder: folder that `write` filled.

    Raises:
      ValueError: the folder has no latents, lacks files, or is broken.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self._folder = folder = pathlib.Path(folder)
        path = folder / _INDEX
        if not path.is_file():
            raise ValueError(f"{path} is missing: {_REMEDY}")
        try:
            content = json.loads(path.read_bytes())
            run, count = str(content.pop("run")), int(content.pop("examples"))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path} is broken ({error}): {_REMEDY}") from error
        self._facts = content
        names = [folder / f"{run}-{i:05}" for i in range(-(-count // _PER_FILE))]
        files = [name.with_suffix(end) for name in names for end in (".npy", ".jsonl")]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ValueError(
                f"{folder} lacks {', '.join(missing[:5])}: give the same command of"
                " python -m maa_jax.embed again, with every process"
            )
        try:
            self._rows = [np.load(file, mmap_mode="r") for file in files[::2]]
            lines = [file.read_bytes().splitlines() for file in files[1::2]]
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{folder} is broken ({error}): {_REMEDY}") from error
        self._lines = [line for of in lines for line in of]
        if sum(map(len, self._rows)) != len(self._lines) or len(self._lines) != count:
            raise ValueError(
                f"{folder} is broken ({sum(map(len, self._rows))} rows, {len(self._lines)} lines,"
                f" {count} examples in its index): {_REMEDY}"
            )

    def __reduce__(self):
        return Latents, (self._folder,)  # a worker process maps the files itself

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self._lines)

    def __getitem__(self, place: Any) -> Any:
        """Returns an example: `moments` float32 [h, w, 2 c], `index` and `captions`."""
        moments = self._rows[place // _PER_FILE][place % _PER_FILE]
        return {"moments": np.array(moments), **json.loads(self._lines[place])}

    @property
    def captions(self) -> list[str]:
        """All captions."""
        return [caption for line in self._lines for caption in json.loads(line)["captions"]]

    def check(self, wanted: Mapping[str, Any]) -> None:
        """Raises a ValueError unless these are a run's latents; it names what differs.

        Args:
          wanted: what the run's latents depend on; see `write`.
        """
        different = differences(self._facts, wanted)
        if different:
            raise ValueError(
                f"config.latents: {self._folder} holds the latents of another run:"
                f" {'; '.join(different)}; make them agree, or {_REMEDY} and this run's config"
            )


def _run(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
