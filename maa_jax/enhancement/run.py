"""One run of prompt enhancement: its shards, its settings, its candidates."""

import io
import json
from collections.abc import Sequence
from typing import Any


def check_needs(
    experts: Sequence[str],
    captioner: str | None,
    retriever: str | None,
    bank: str | None,
    bank_captions: str | None,
    withhold_labels: bool,
) -> None:
    """Raises a ValueError unless each expert has what it needs, and nothing is left over."""
    for key, value, expert in (
        ("captioner", captioner, "captioning"),
        ("retriever", retriever, "retrieval"),
        ("bank or bank_captions", bank or bank_captions, "retrieval"),
    ):
        if expert in experts and not value:
            raise ValueError(f"experts: {expert!r} needs {key}; give it or leave the expert out")
        if value and expert not in experts:
            raise ValueError(f"{key}={value!r} is for the expert {expert!r}: add that to experts")
    if bank and bank_captions:
        raise ValueError(f"bank={bank!r} and bank_captions={bank_captions!r}: give one of them")
    if withhold_labels and "labels" in experts:
        raise ValueError("experts: 'labels' has nothing to say with withhold_labels: drop either")


def make_shards(expression: str, out: str, sounds: str | None, size: int) -> list:
    """Returns the shards of all datasets of an expression; builds datasets that are missing."""
    import jax
    import tensorflow_datasets as tfds

    from maa_jax.data import datasets, mixtures
    from maa_jax.data.config import DataConfig
    from maa_jax.enhancement.shards import Shard

    parts = mixtures.parse("dataset", expression, "train")
    weighted = [str(part) for part in parts if part.weight != 1]
    if weighted:
        raise ValueError(f"dataset={expression!r}: weights are for training; name {weighted} alone")
    shards = []
    for part in parts:
        # Evaluation splits may be enhanced, too: what is refused is to train on them.
        config = DataConfig(part.dataset, data_dir=out, folder=sounds)
        folder = datasets.prepare(config, jax.process_index())
        splits = tfds.builder_from_directory(folder).info.splits
        try:
            count = splits[part.split].num_examples
        except (KeyError, ValueError) as e:
            raise ValueError(
                f"dataset={expression!r}: {part.dataset} has no split {part.split!r}; use one of "
                f"{list(splits)}"
            ) from e
        label = f"{part.dataset}/{folder.name}:{part.split}"
        for start in range(0, count, size):
            stop = min(start + size, count)
            shards.append(Shard(len(shards), label, str(folder), part.split, start, stop))
    if not shards:
        raise ValueError(f"dataset={expression!r} holds no recording; take a larger part")
    return shards


def read_captions(source: str, out: str) -> list[str]:
    """Returns the captions of a text file, a line each, or of datasets."""
    from etils import epath

    from maa_jax.data import datasets

    if epath.Path(source).is_file():
        return epath.Path(source).read_text().splitlines()
    return datasets.captions({"dataset": source, "data_dir": out})


def check_same(path, settings: dict[str, Any]) -> None:
    """Raises a ValueError where something else was begun, or built, under the same name."""
    if not path.exists():
        return
    there = json.loads(path.read_text())
    different = [
        f"{key}: {there.get(key)!r} there, {value!r} here"
        for key, value in settings.items()
        if there.get(key) != value
    ]
    if different:
        raise ValueError(
            f"{path.parent} is of other settings ({'; '.join(different)}): give another name, or "
            "remove that folder"
        )


def is_built(folder) -> bool:
    """Whether a dataset's folder is finished."""
    return (folder / "dataset_info.json").exists()


def find_captions(
    shards: Sequence,
    work,
    experts: Sequence,
    clap,
    *,
    samples: int,
    batch_size: int,
    threshold: float,
    withhold_labels: bool,
) -> None:
    """Writes the record of each shard that has none; decodes in threads, ahead of the device."""
    import grain
    import numpy as np
    import tqdm

    from maa_jax.enhancement.distill import best, distill
    from maa_jax.enhancement.shards import has_record, open_split, read_record, write_record

    def load(batch):
        shard, start = batch
        source = open_split(shard.folder, shard.split)
        examples = [source[i] for i in range(start, min(start + batch_size, shard.stop))]
        rows = np.arange(batch_size) % len(examples)  # filled up: experts see one shape alone
        wavs = np.stack([middle_clip(example["audio"], samples) for example in examples])
        labels = [
            [] if withhold_labels else [label.decode() for label in example["labels"]]
            for example in examples
        ]
        ids = [example["id"].decode() for example in examples]
        return shard, ids, wavs[rows], [labels[row] for row in rows]

    def accepted(rows) -> int:
        return sum(best(candidates, threshold) is not None for _, candidates in rows)

    done = {shard for shard in shards if has_record(work, shard)}
    batches = [
        (shard, start)
        for shard in shards
        if shard not in done
        for start in range(shard.start, shard.stop, batch_size)
    ]
    ahead = grain.MapDataset.source(batches).map(load).to_iter_dataset(grain.ReadOptions(4, 4))
    seen, kept = sum(map(len, done)), sum(accepted(read_record(work, shard)) for shard in done)
    rows = []
    with tqdm.tqdm(
        total=sum(map(len, shards)), initial=seen, desc="Enhancing", unit="recording"
    ) as bar:
        for shard, ids, wavs, labels in ahead:
            found = distill(wavs, labels, experts, clap)[: len(ids)]
            new = list(zip(ids, found, strict=True))
            rows += new
            seen, kept = seen + len(new), kept + accepted(new)
            if len(rows) == len(shard):
                write_record(work, shard, rows)
                rows = []
            bar.set_postfix_str(f"{kept / seen:.1%} accepted", refresh=False)
            bar.update(len(new))


def middle_clip(data: bytes, samples: int):
    """Decodes the middle of a recording (FLAC bytes), float32 [samples]; zeros behind a short one.

    Only that part is decoded.
    """
    import soundfile

    with soundfile.SoundFile(io.BytesIO(data)) as file:
        file.seek(max(0, file.frames - samples) // 2)
        return file.read(samples, dtype="float32", fill_value=0.0)
