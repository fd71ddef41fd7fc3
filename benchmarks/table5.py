r"""The paper's Table 5 for recordings whose labels were withheld from `maa_jax.enhance`.

    python -m benchmarks.table5 --data_dir=data --name=unknown --original=unknown_labels \
        --tables=corpus

The rows are sources of captions: the labels themselves (--original, enhanced with
--experts=labels), the first proposal of each expert, and CLAP's choice, by score, among all. As a
check that does not depend on that score, the table shows how often a caption names the withheld
label or a synonym (synonyms.json, which `tools.corpora` writes), and how often that of another
recording does.
"""

import csv
import json
import pathlib
import re

import numpy as np
import tensorflow_datasets as tfds
from absl import app, flags

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the TFDS datasets.", required=True)
_NAME = flags.DEFINE_string("name", None, "Name of the enhanced dataset.", required=True)
_ORIGINAL = flags.DEFINE_string(
    "original", None, "Name of the dataset enhanced with only labels.", required=True
)
_TABLES = flags.DEFINE_string(
    "tables", None, "Folder with unknown.csv and synonyms.json.", required=True
)


def records(name: str) -> dict[str, dict]:
    """Returns an enhanced dataset's records without their audio, by source, one window of each."""
    folders = sorted((pathlib.Path(_DATA_DIR.value) / "enhanced" / name).glob("[0-9]*.[0-9]*[0-9]"))
    builder = tfds.builder_from_directory(folders[-1])
    found = {}
    for split in builder.info.splits:
        for example in builder.as_data_source(split):
            record = {
                "accepted": split == "train",
                "captions": [caption.decode() for caption in example["candidates"]],
                "experts": [expert.decode() for expert in example["candidate_experts"]],
                "scores": np.asarray(example["candidate_scores"]),
            }
            found.setdefault(example["source"].decode(), record)
    return found


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    tables = pathlib.Path(_TABLES.value)
    with (tables / "unknown.csv").open() as file:
        labels = {row["file"]: row["label"] for row in csv.DictReader(file)}
    synonyms = json.loads((tables / "synonyms.json").read_text())
    pattern = {
        label: re.compile(rf"\b({'|'.join(map(re.escape, {label, *words}))})s?\b", re.I)
        for label, words in synonyms.items()
    }
    enhanced, original = records(_NAME.value), records(_ORIGINAL.value)
    sources = [source for source in enhanced if source in labels and source in original]

    def first(found: dict, expert: str) -> int | None:
        return found["experts"].index(expert) if expert in found["experts"] else None

    rows = {"original labels": [(s, original[s], first(original[s], "labels")) for s in sources]}
    for expert in dict.fromkeys(e for found in enhanced.values() for e in found["experts"]):
        rows[expert] = [(s, enhanced[s], first(enhanced[s], expert)) for s in sources]
    best = [(s, enhanced[s], int(np.argmax(enhanced[s]["scores"]))) for s in sources]
    rows["all + CLAP selection, best"] = best
    rows["all + CLAP selection, accepted"] = [row for row in best if row[1]["accepted"]]

    print(f"{len(sources)} recordings, {len({labels[s] for s in sources})} labels")
    head = ("captions", "recordings", "CLAP", "names the label", "of another recording")
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    rng = np.random.default_rng(0)
    for name, row in rows.items():
        row = [(s, found, i) for s, found, i in row if i is not None]
        score = np.mean([found["scores"][i] for _, found, i in row])
        captions = [found["captions"][i] for _, found, i in row]
        named = [
            bool(pattern[labels[s]].search(c)) for (s, _, _), c in zip(row, captions, strict=True)
        ]
        other = [captions[i] for i in rng.permutation(len(captions))]
        chance = [
            bool(pattern[labels[s]].search(c)) for (s, _, _), c in zip(row, other, strict=True)
        ]
        print(
            f"| {name} | {len(row)} | {score:.3f} | {np.mean(named):.1%} | {np.mean(chance):.1%} |"
        )


if __name__ == "__main__":
    app.run(main)
