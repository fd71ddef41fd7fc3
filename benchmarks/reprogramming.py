r"""Rate of the input pipeline with dynamic reprogramming.

    python -m benchmarks.reprogramming [--dataset=sonic_sounds] [--seconds=5] [--training_rate=8]

The rows are the pipeline without reprogramming ("off"), with 0, 1 or 2 events joined to every pair,
and with 0 to 2 events drawn for each, as in training ("drawn"). The columns are threads of the
training process, and worker processes. With `--training_rate`, the examples that training
consumes per second (see its log), each rate is followed by its ratio to that one.
"""

import time

from absl import app, flags, logging

from maa_jax.data import input_pipeline
from maa_jax.data.config import DataConfig

EVENTS = {
    "off": None,
    "0": (1.0, 0.0, 0.0),
    "1": (0.0, 1.0, 0.0),
    "2": (0.0, 0.0, 1.0),
    "drawn": (1.0, 1.0, 1.0),
}

_DATASET = flags.DEFINE_string(
    "dataset", "sonic_sounds", "Dataset of the pairs; see config.data.dataset."
)
_EVENTS = flags.DEFINE_string(
    "events", "sonic_sounds", "Dataset of the events; see config.data.reprogram.events."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the TFDS datasets.")
_SAMPLES = flags.DEFINE_integer(
    "samples", 624 * 256, "Samples of a clip at 16 kHz; the paper's by default."
)
_BATCH = flags.DEFINE_integer("batch_size", 32, "Examples in a batch.")
_WORKERS = flags.DEFINE_list(
    "workers", ["0", "1", "2"], "Numbers of worker processes; 0 for threads."
)
_SECONDS = flags.DEFINE_float("seconds", 5.0, "Duration of each measurement in seconds.")
_TRAINING_RATE = flags.DEFINE_float(
    "training_rate", None, "Examples per second that training consumes."
)


def rate(workers: int, n_events: tuple[float, float, float] | None) -> float:
    """Returns examples per second, measured after the first batches."""
    data = DataConfig.of(
        {
            "dataset": _DATASET.value,
            "data_dir": _DATA_DIR.value,
            "samples": _SAMPLES.value,
            "workers": workers,
            "reprogram": {"events": _EVENTS.value, "n_events": n_events} if n_events else {},
        }
    )
    iterator = input_pipeline.train_iterator(data, batch_size=_BATCH.value, seed=0)
    # Batches prefetched before the clock starts do not count: as many are taken first.
    for _ in range(data.prefetch * max(workers, 1) + 1):
        next(iterator)
    begin, batches = time.perf_counter(), 0
    while (seconds := time.perf_counter() - begin) < _SECONDS.value:
        next(iterator)
        batches += 1
    return batches * _BATCH.value / seconds


def main(argv: list[str]) -> None:
    """Prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} is not a flag")
    logging.set_verbosity(logging.WARNING)  # TFDS logs every dataset that it opens
    workers = [int(n) for n in _WORKERS.value]
    print(f"examples per second, clips of {_SAMPLES.value / 16000:.1f} s, {_DATASET.value}")
    if _TRAINING_RATE.value:
        print(f"training takes {_TRAINING_RATE.value:g} per second")
    head = ["events", *(f"{n} worker{'s' * (n > 1)}" if n else "threads" for n in workers)]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for name, n_events in EVENTS.items():
        cells = []
        for n in workers:
            found = rate(n, n_events)
            times = f" ({found / _TRAINING_RATE.value:.0f} x)" if _TRAINING_RATE.value else ""
            cells.append(f"{found:.0f}{times}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    app.run(main)
