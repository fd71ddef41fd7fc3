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
import errno
import fcntl
import hashlib
import io
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import logging
from etils import epath

from maa_jax.audio.io import SAMPLE_RATE, AudioError, decode, encode_flac, is_silent, load, pcm16
from maa_jax.command import no_room
from maa_jax.data.builders import origins
from maa_jax.files import replace_file

MAX_BROKEN = 0.01  # share of unusable recordings above which a build stops
# Number of recordings from which on one unusable recording does not stop a build.
_FEW = 10
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
      fault: why the recording cannot be used, if that is known before it is read.
    """

    id: str
    audio: epath.Path | bytes | None
    captions: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    source: str = ""
    license: str = ""
    split: str | None = None
    fault: str = ""


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
                _remove_leftovers(epath.Path(self.data_dir_root) / self.name, self._final_path)
                super().download_and_prepare(**kwargs)
        except Exception as error:
            # TFDS's writers pass on the system's message, without the error number or a place.
            if no_room(error):
                number, place = errno.ENOSPC, os.fspath(self._final_path)
                raise OSError(number, os.strerror(number), place) from error
            raise
        finally:
            tfds.enable_progress_bar()
        # TFDS reads the info only if it has built the dataset itself.
        self.info.read_from_directory(self._final_path)


class Info(tfds.core.DatasetInfo):
    """TFDS's description of a dataset, which it does not look for in Google's bucket.

    Looking there leaves an empty folder in $TMPDIR at every build.
    """

    def initialize_from_bucket(self) -> None:
        """Does nothing."""


@contextlib.contextmanager
def _lock(folder: epath.Path) -> Iterator[None]:
    """Holds the lock of a dataset's folder; waits for any other holder first."""
    if "://" in os.fspath(folder):
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The file is not removed: one process could then lock the old file and another a new one.
    with open(_lock_file(folder), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.warning("waiting for another process to build %s", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lock_file(folder: epath.Path) -> epath.Path:
    return folder.parent / f".{folder.name}.lock"


def _remove_leftovers(folder: epath.Path, held: epath.Path) -> None:
    """Removes what killed builds of a dataset, in any of its variants, have left behind.

    TFDS builds in a folder `incomplete.XXXXXX_VERSION`, which is left over if nobody holds the lock
    of that version, or if this process does, that of `held`.
    """
    if "://" in os.fspath(folder):
        return
    for left in held.parent.glob(f".tmp-*-{held.name}-skipped.tsv"):
        left.unlink(missing_ok=True)
    for left in [*folder.glob("incomplete.*_*"), *folder.glob("*/incomplete.*_*")]:
        final = left.parent / left.name.partition("_")[2]
        try:
            with open(_lock_file(final), "r+") as file:
                if final != held:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.rmtree(missing_ok=True)
        except BlockingIOError:  # being built
            continue
        except FileNotFoundError:  # not a build of this package
            continue


def audio_features() -> dict[str, Any]:
    """Returns the features that the examples of every dataset have."""
    text = tfds.features.Text()
    return {
        "audio": tfds.features.Tensor(shape=(), dtype=np.str_),  # FLAC bytes
        "captions": tfds.features.Sequence(text),
        "labels": tfds.features.Sequence(text),
        "source": text,
        "id": text,
        "seconds": np.float32,
        "license": text,
        "audio_hash": text,  # SHA-256 of the 16-bit samples, in hex
    }


class AudioBuilder(BuildsOnce, tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of the audio datasets: ArrayRecord files with one format of examples.

    Recordings that are unreadable, truncated, empty, silent or not finite are skipped and listed in
    `report_path`; the build stops if they are more than 1 %, or more than one of 10 to 100.
    Recordings that exceed full scale, as float files may, are scaled down to it and listed, too.
    """

    DESCRIPTION = ""

    def __init__(self, **kwargs: Any):
        super().__init__(file_format="array_record", **kwargs)
        # (source or id of the recording, reason)
        self._broken: list[tuple[str, str]] = []
        self._scaled: list[tuple[str, str]] = []

    @abc.abstractmethod
    def recordings(self, dl_manager: tfds.download.DownloadManager) -> Sequence[Recording]:
        """Lists the dataset's recordings without reading their audio."""

    @property
    def report_path(self) -> epath.Path:
        """Table of the skipped and the scaled recordings, beside the dataset's folder."""
        return self._final_path.parent / f"{self._final_path.name}-skipped.tsv"

    def _info(self) -> tfds.core.DatasetInfo:
        return Info(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(self.features()),
        )

    def features(self) -> dict[str, Any]:
        """Returns the features of the dataset's examples."""
        return audio_features()

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        recordings = self.recordings(dl_manager)
        twice = [i for i, n in collections.Counter(r.id for r in recordings).items() if n > 1]
        if twice:
            raise ValueError(
                f"dataset {self.name}: ids are not unique: {twice[:_LISTED]};"
                " name every recording once"
            )
        self._broken += [(_name(r), r.fault) for r in recordings if r.fault]
        splits = split_by_recording([r for r in recordings if not r.fault])
        self._count = len(recordings)
        self._allowed = 0 if self._count < _FEW else math.ceil(MAX_BROKEN * self._count)
        self._write_report()
        if not splits or len(self._broken) > self._allowed:
            self._stop()
        self._waiting = dict(splits)
        return {name: self._generate_examples(name) for name in splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        recordings, kept = self._waiting.pop(split), 0
        for recording, example in self._read(split, recordings):
            kept += 1
            yield recording.id, example
        if not kept:  # TFDS stops here: see what else is wrong, so that the user hears of all
            for name in list(self._waiting):
                collections.deque(self._read(name, self._waiting.pop(name)), maxlen=0)
        self._write_report()
        if not self._waiting and (len(self._broken) > self._allowed or not kept):
            self._stop()
        if not self._waiting:
            self._finish()

    def origin(self) -> origins.Origin | None:
        """Returns what the dataset is built from, once it is read; None if that cannot change."""
        return None

    def _finish(self) -> None:
        """Remembers what was read, and says what was left out or changed."""
        if origin := self.origin():
            origins.write(epath.Path(self.data_path), origin)
        for found, what in (
            (self._broken, "left out, since they cannot be used"),
            (self._scaled, "scaled down, since they exceed full scale"),
        ):
            if found:
                logging.warning(
                    "%s: %d of %d recordings are %s; all are listed in %s",
                    *(self.name, len(found), self._count, what, self.report_path),
                )

    def _read(
        self, split: str, recordings: Sequence[Recording]
    ) -> Iterator[tuple[Recording, dict]]:
        """Yields the examples of the recordings that can be used, and notes the others."""
        reading = zip(recordings, self._read_ahead(recordings), strict=True)
        progress = {"desc": f"{self.name}: {split}", "unit": "file", "total": len(recordings)}
        for recording, future in tqdm.tqdm(reading, **progress):
            try:
                example, peak = future.result()
            except AudioError as error:
                self._broken.append((_name(recording), str(error)))
                # Do not read a large dataset to its end once it has failed.
                if len(self._broken) > max(self._allowed, _LISTED):
                    self._stop()
                continue
            if peak > 1:
                kept = f"kept, but scaled down: its peak is {peak:.3g} of full scale"
                self._scaled.append((_name(recording), kept))
            yield recording, example

    def _read_ahead(
        self, recordings: Iterable[Recording]
    ) -> Iterator[concurrent.futures.Future[tuple[dict, float]]]:
        """Yields a future of each recording's example, in order; threads read the next few.

        Finished examples are held as FLAC, so memory depends only on the number of threads.
        """
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
            waiting: collections.deque[concurrent.futures.Future] = collections.deque()
            for recording in recordings:
                waiting.append(threads.submit(self._example, recording))
                if len(waiting) > 2 * _THREADS:
                    yield waiting.popleft()
            yield from waiting

    def _example(self, recording: Recording) -> tuple[dict, float]:
        """Returns a recording's example, and its peak before it was scaled to at most 1.

        Raises:
          AudioError: the recording cannot be used.
        """
        if recording.audio is None:
            raise AudioError("the file is missing")
        content, peak = self.content(recording.audio)
        example = {
            **content,
            "captions": list(recording.captions),
            "labels": list(recording.labels),
            "source": recording.source,
            "id": recording.id,
            "license": recording.license,
        }
        return example, peak

    def content(self, file: epath.Path | bytes) -> tuple[dict, float]:
        """Returns the features that a file gives, and its peak before it was scaled to at most 1.

        Raises:
          AudioError: the file cannot be used.
        """
        if isinstance(file, bytes):
            wav = decode(file, SAMPLE_RATE)
        else:
            wav = load(file, SAMPLE_RATE)
        if is_silent(wav):
            raise AudioError("silent: no sample above -80 dBFS")
        peak = float(np.abs(wav).max())
        wav = wav / max(peak, 1)  # the 16 bits of FLAC end at full scale
        content = {
            "audio": encode_flac(wav, SAMPLE_RATE),
            "seconds": len(wav) / SAMPLE_RATE,
            # A hash of the samples, not of the file, finds the same sound in two containers.
            "audio_hash": hashlib.sha256(pcm16(wav).astype("<i2").tobytes()).hexdigest(),
        }
        return content, peak

    def _stop(self) -> NoReturn:
        self._write_report()
        listed = "\n".join(f"  {name}: {why}" for name, why in self._broken[:_LISTED])
        raise AudioError(
            f"dataset {self.name}: {len(self._broken)} recordings cannot be used, more than the"
            f" {MAX_BROKEN:.0%} (or the one of {_FEW} or more) that is tolerated; fix or remove"
            f" them and build again. All are listed in {self.report_path}; the first ones:\n"
            f"{listed}"
        )

    def _write_report(self) -> None:
        table = io.StringIO()
        writer = csv.writer(table, delimiter="\t", lineterminator="\n")
        writer.writerows([("file", "reason"), *self._broken, *self._scaled])
        self.report_path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(self.report_path) as new:
            new.write_text(table.getvalue())


def _name(recording: Recording) -> str:
    return recording.source or recording.id


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
