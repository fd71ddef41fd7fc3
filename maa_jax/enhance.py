"""Captions for recordings that have none: experts propose, CLAP chooses (paper section 3.2.1).

    python -m maa_jax.enhance --dataset=fsd50k --name=fsd50k --out=DATA_DIR --withhold_labels \
        --captioner=models/captioner --retriever=models/retriever --bank_captions=audiocaps

Writes the TFDS dataset enhanced/NAME into OUT, the folder of the datasets that it reads, and a
report of scores and examples beside it. Training reads the dataset by its name. The same command
resumes an interrupted run: candidates are saved one shard at a time. Several processes divide the
shards; OUT must be a folder that all of them can access. With --beam_options Apache Beam (extra:
beam) writes the dataset, and its workers must have access to OUT too:

    --beam_options="--runner=DirectRunner"                              # this machine
    --beam_options="--runner=FlinkRunner --flink_master=HOST:8081"      # or Spark, Dataflow

A recording is heard in windows of --clip_seconds, and an example of the dataset is a window, cut
out without loss, with the captions that were made for it; --max_windows bounds their number in very
long recordings. A shorter recording is one window, which experts and CLAP hear padded with zeros at
the end.
"""

from maa_jax import command, options
from maa_jax.enhancement.request import Enhancement


def define_flags() -> None:
    """Defines the flags, one for each field of `Enhancement`."""
    options.define_flags(Enhancement)


def main() -> None:
    """Runs the program that this module's docstring describes."""
    request = options.from_flags(Enhancement)
    # Imported after the flags are parsed, so that --help and mistakes in them are answered at once.
    from maa_jax import devices
    from maa_jax.enhancement.run import enhance

    devices.initialize()
    enhance(request)


def run() -> None:
    """Entry point of `python -m maa_jax.enhance` and of `maa-enhance`."""
    command.run(main, define_flags)


if __name__ == "__main__":
    run()
