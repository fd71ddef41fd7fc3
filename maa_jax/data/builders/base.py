"""Base of all audio datasets: the format of examples, the splits, the handling of broken files.

A dataset is a subclass that lists its recordings:

    class Chirps(AudioBuilder):
        VERSION = tfds.core.Version("1.0.0")
        DESCRIPTION = "Bird calls."

        def recordings(self, dl_manager: tfds.download.DownloadManager) -> Sequence[Recording]:
            return [Recording(id="wren", audio=path, captions=("a wren sings",), source="...")]

Examples hold 16 kHz mono FLAC: reading them needs no resampling and little disk space.
"""

import abc
import collections
import concurrent.futures
import contextlib
import csv
import dataclasses
import fcntl
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import logging
from etils import epath

from maa_jax.audio.io import SAMPLE_RATE, AudioError, decode, encode_flac, is_silent, load, pcm16

MAX_BROKEN = 0.01  # share of unusable recordings above which a build stops
_LISTED = 20  # broken recordings that an error message names; the report lists all
# Recordings decoded at a time; a long one takes about 100 MB during decoding.
_THREADS = min(8, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True, slots=True)  # there may be millions
class Recording:
    """One recording before it is read.

    Attributes:
      id: name that is unique in the dataset; its hash determines the split.
      audio: sound file or its content; None if the user of a published dataset lacks the file.
      captions: sentences that describe the recording, up to five.
      labels: classes of the recording; the splits are stratified by the first one.
      source: address or file name of the original.
      license: terms of use, a name or an address; by default the dataset's.
      split: "train", "validation" or "test" if the dataset has fixed splits, otherwise None.
    """

    id: str
    audio: epath.Path | bytes | None
    captions: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    source: str = ""
    license: str = ""
    split: str | None = None


class BuildsOnce:
    """Lets a TFDS dataset be built only once if several processes or threads need it at a time.

    One of them builds; the others wait for a lock on an empty file beside the dataset's folder,
    `.VERSION.lock`, and then find the dataset built. The operating system releases the lock when
    its holder ends, so that the next one builds if a build failed or was killed. On NFS this works
    across machines. Buckets have no locks: run one build at a time there.
    """

    def download_and_prepare(self, **kwargs: Any) -> None:
        """Builds the dataset unless it exists; see TFDS."""
        # While it builds, TFDS points `data_path` to a temporary folder.
        self._final_path = epath.Path(self.data_path)
        # Replaces the progress bars of TFDS, which lack a total.
        tfds.disable_progress_bar()
        try:
            # TFDS also announces sizes that it does not know.
            with _lock(self._final_path), contextlib.redirect_stdout(io.StringIO()):
                super().download_and_prepare(**kwargs)
        finally:
            tfds.enable_progress_bar()
        # TFDS reads the info only if it has built the dataset itself.
        self.info.read_from_directory(self._final_path)


@contextlib.contextmanager
def _lock(folder: epath.Path) -> Iterator[None]:
    """Holds the lock of a dataset's folder; waits for any other holder first."""
    if "://" in os.fspath(folder):
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The file is not removed: one process could then lock the old file and another a new one.
    with open(folder.parent / f".{folder.name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.warning("waiting for another process to build %s", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class AudioBuilder(BuildsOnce, tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of the audio datasets: ArrayRecord files with one format of examples.

    Recordings that are unreadable, truncated, empty, silent or not finite are skipped and listed in
    `report_path`; the build stops if they are more than 1 %.
    """

    DESCRIPTION = ""

    def __init__(self, **kwargs):
        super().__init__(file_format="array_record", **kwargs)
        self._broken = []  # (source or id of the recording, reason)

    @abc.abstractmethod
    def recordings(self, dl_manager: tfds.download.DownloadManager) -> Sequence[Recording]:
        """Lists the dataset's recordings without reading their audio."""

    @property
    def report_path(self) -> epath.Path:
        """Table of the skipped recordings, beside the dataset's folder."""
        return self._final_path.parent / f"{self._final_path.name}-skipped.tsv"

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "audio": tfds.features.Tensor(shape=(), dtype=np.str_),  # FLAC bytes
                    "captions": tfds.features.Sequence(text),
                    "labels": tfds.features.Sequence(text),
                    "source": text,
                    "id": text,
                    "seconds": np.float32,
                    "license": text,
                    "audio_hash": text,  # SHA-256 of the 16-bit samples, in hex
                }
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        recordings = self.recordings(dl_manager)
        twice = [i for i, n in collections.Counter(r.id for r in recordings).items() if n > 1]
        if twice:
            raise ValueError(
                f"dataset {self.name}: ids are not unique: {twice[:_LISTED]};"
                " name every recording once"
            )
        splits = split_by_recording(recordings)
        self._allowed = MAX_BROKEN * len(recordings)
        self._write_report()
        last = list(splits)[-1]
        return {
            name: self._generate_examples(name, members, is_last=name == last)
            for name, members in splits.items()
        }

    def _generate_examples(
        self, split: str, recordings: Sequence[Recording], is_last: bool
    ) -> Iterator[tuple[str, dict]]:
        kept = 0
        reading = zip(recordings, _read_ahead(recordings), strict=True)
        progress = {"desc": f"{self.name}: {split}", "unit": "file", "total": len(recordings)}
        for recording, example in tqdm.tqdm(reading, **progress):
            try:
                example = example.result()
            except AudioError as error:
                self._broken.append((recording.source or recording.id, str(error)))
                # Do not read a large dataset to its end once it has failed.
                if len(self._broken) > max(self._allowed, _LISTED):
                    self._stop()
            else:
                kept += 1
                yield recording.id, example
        self._write_report()
        if len(self._broken) > self._allowed and (is_last or not kept):
            self._stop()

    def _stop(self):
        self._write_report()
        listed = "\n".join(f"  {name}: {why}" for name, why in self._broken[:_LISTED])
        raise AudioError(
            f"dataset {self.name}: {len(self._broken)} recordings cannot be used, more than the"
            f" {MAX_BROKEN:.0%} that is tolerated; fix or remove them and build again. All are"
            f" listed in {self.report_path}; the first ones:\n{listed}"
        )

    def _write_report(self):
        table = io.StringIO()
        writer = csv.writer(table, delimiter="\t", lineterminator="\n")
        writer.writerows([("file", "reason"), *self._broken])
        self.report_path.parent.mkdir(parents=True, exist_ok=True)
        self.report_path.write_text(table.getvalue())


def _read_ahead(recordings: Iterable[Recording]) -> Iterator[concurrent.futures.Future]:
    """Yields a future of each recording's example, in order, while threads read the next few.

    Finished examples are held as FLAC, so memory depends only on the number of threads.
    """
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        waiting: collections.deque[concurrent.futures.Future] = collections.deque()
        for recording in recordings:
            waiting.append(threads.submit(_read, recording))
            if len(waiting) > 2 * _THREADS:
                yield waiting.popleft()
        yield from waiting


def _read(recording: Recording) -> dict:
    """Reads a recording into an example; raises AudioError if it is unusable."""
    if recording.audio is None:
        raise AudioError("the file is missing")
    if isinstance(recording.audio, bytes):
        wav = decode(recording.audio, SAMPLE_RATE)
    else:
        wav = load(recording.audio, SAMPLE_RATE)
    if is_silent(wav):
        raise AudioError("silent: no sample above -80 dBFS")
    return {
        "audio": encode_flac(wav, SAMPLE_RATE),
        "captions": list(recording.captions),
        "labels": list(recording.labels),
        "source": recording.source,
        "id": recording.id,
        "seconds": len(wav) / SAMPLE_RATE,
        "license": recording.license,
        # A hash of the samples, not of the file, finds the same sound in two containers.
        "audio_hash": hashlib.sha256(pcm16(wav).astype("<i2").tobytes()).hexdigest(),
    }


def split_by_recording(recordings: Sequence[Recording]) -> dict[str, list[Recording]]:
    """Splits into train, validation and test, about 80, 10 and 10 %; empty splits are left out.

    A recording's own `split` is kept. The others are grouped by their first label and ordered by a
    hash of their ids. Of the n recordings of a label, round(n / 10) go to validation and as many to
    test, at least one each if n is 5 or more; so every label is in train. If all labels are rarer
    than that, or there are none, all recordings form one group, and validation gets at least one
    recording if there are three or more.
    """
    splits: dict[str, list[Recording]] = {"train": [], "validation": [], "test": []}
    strata: dict[tuple[str, ...], list[Recording]] = collections.defaultdict(list)
    for recording in sorted(recordings, key=lambda r: hashlib.sha256(r.id.encode()).digest()):
        if recording.split is not None:
            splits[recording.split].append(recording)
        else:
            strata[recording.labels[:1]].append(recording)
    if all(len(members) < 5 for members in strata.values()):
        strata = {(): [recording for members in strata.values() for recording in members]}
    for members in strata.values():
        smallest = 3 if len(strata) == 1 else 5
        held_out = max(len(members) >= smallest, round(len(members) / 10))
        splits["validation"] += members[:held_out]
        splits["test"] += members[held_out : 2 * held_out]
        splits["train"] += members[2 * held_out :]
    return {name: members for name, members in splits.items() if members}
