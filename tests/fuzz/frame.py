"""Runs cases of hostile input, in this process or in others with limits, and judges their ends."""

import contextlib
import dataclasses
import importlib
import multiprocessing
import os
import pathlib
import resource
import shutil
import signal
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection

import numpy as np

import maa_jax

KINDS = {
    "released": "tests.fuzz.released_files",
    "audio": "tests.fuzz.audio_files",
    "captions": "tests.fuzz.captions_files",
    "model_folders": "tests.fuzz.model_folders",
}
SEED = 0
SECONDS = 10  # for one case
BYTES = 4 << 30  # for the data of a process; of its address space, jax alone reserves more
# The ends that a user can live with. The others: "unnamed" is an error of ours whose message does
# not name the input; "foreign", another exception; "accepted", a broken input that was taken;
# "wrong", a result that cannot be trusted; "hang"; "memory"; "crash", the end of the process.
SURVIVED = ("valid", "clear error")
_PACKAGE = str(pathlib.Path(maa_jax.__file__).parent)


@dataclasses.dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes:
      what: what was done to it, for people.
      path: where it lies; a clear error names it.
      broken: whether a result, other than an error, would be wrong whatever it is.
    """

    what: str
    path: pathlib.Path
    broken: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a case: a verdict (see `SURVIVED`), and the exception's text if any."""

    index: int
    what: str
    verdict: str
    detail: str = ""

    @property
    def survived(self) -> bool:
        return self.verdict in SURVIVED

    def __str__(self) -> str:
        return f"case {self.index} ({self.what}): {self.verdict} {self.detail}".rstrip()


def make(kind: str, index: int, folder: pathlib.Path, seed: int = SEED) -> Case:
    """Writes case `index` of a kind into an empty folder."""
    module = importlib.import_module(KINDS[kind])
    return module.make(np.random.default_rng([seed, index]), folder)


def judge(kind: str, index: int, case: Case) -> Outcome:
    """Uses a case in this process."""
    use = importlib.import_module(KINDS[kind]).use
    try:
        use(case.path)
    except KeyboardInterrupt:
        raise
    except _Hang:
        return Outcome(index, case.what, "hang")
    except MemoryError as error:
        return Outcome(index, case.what, "memory", _place(error))
    except AssertionError as error:
        return Outcome(index, case.what, "wrong", _place(error))
    except BaseException as error:  # a panic of a Rust library is no Exception
        text = str(error)
        if not _ours(error):
            return Outcome(index, case.what, "foreign", _place(error))
        named = case.path.name in text or repr(case.path.name)[1:-1] in text
        return Outcome(index, case.what, "clear error" if named else "unnamed", text)
    return Outcome(index, case.what, "accepted" if case.broken else "valid")


def run_here(kind: str, count: int, folder: pathlib.Path, seed: int = SEED) -> list[Outcome]:
    """Runs the first cases of a kind in this process, which must be its main thread."""
    outcomes = []
    importlib.import_module(KINDS[kind]).warm()
    for index in range(count):
        own = folder / str(index)
        own.mkdir()
        case = make(kind, index, own, seed)
        with _alarm(SECONDS):
            outcomes.append(judge(kind, index, case))
        shutil.rmtree(own, ignore_errors=True)
    return outcomes


def run_apart(kind: str, indices: Sequence[int], seed: int = SEED) -> Iterator[Outcome]:
    """Yields the outcomes of cases of a kind, run in a process with limits of time and memory.

    A case that ends the process, or overruns a limit, costs that process and no other case.
    """
    context = multiprocessing.get_context("spawn")
    left = list(indices)
    while left:
        here, there = context.Pipe()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            process = context.Process(target=_serve, args=(kind, left, folder, seed, there))
            process.start()
            there.close()
            try:
                while left:
                    outcome = _next(here, left[0])
                    left.pop(0)
                    yield outcome
                    if outcome.verdict in ("hang", "memory", "crash"):
                        break
            finally:
                process.kill()
                process.join()


def _next(connection: Connection, index: int) -> Outcome:
    """Waits for the outcome of a case."""
    what = "?"
    try:
        what = connection.recv()  # once the case is made, which is not part of its time
        if not connection.poll(SECONDS):
            return Outcome(index, what, "hang")
        return connection.recv()
    except EOFError:
        return Outcome(index, what, "crash")


def _serve(
    kind: str, indices: Sequence[int], folder: str, seed: int, connection: Connection
) -> None:
    """Runs cases in a process of their own: sends what each is, then its outcome."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    importlib.import_module(KINDS[kind]).warm()
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for index in indices:
        own = pathlib.Path(folder) / str(index)
        own.mkdir()
        case = make(kind, index, own, seed)
        connection.send(case.what)
        connection.send(judge(kind, index, case))
        shutil.rmtree(own, ignore_errors=True)


class _Hang(BaseException):
    """A case overran its time; no `except Exception` catches it."""


@contextlib.contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _ours(error: BaseException) -> bool:
    """Whether an exception is one for users, raised by this package itself."""
    if not isinstance(error, ValueError | FileNotFoundError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1].filename.startswith(_PACKAGE)


def _place(error: BaseException) -> str:
    """An exception in a line: its type, its text, and where it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = "/".join(pathlib.Path(frame.filename).parts[-2:])
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]} ({where}:{frame.lineno})"
