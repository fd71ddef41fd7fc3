"""Captions for recordings that have none: experts propose, CLAP chooses (paper section 3.2.1).

    python -m maa_jax.enhance --dataset=fsd50k --name=fsd50k --out=DATA_DIR --withhold_labels \
        --captioner=models/captioner --retriever=models/retriever --bank_captions=audiocaps

Writes the TFDS dataset enhanced/NAME beside the datasets that it reads, all of them in OUT, and a
report of scores and examples beside that. Training reads it by its name. The same command resumes
an interrupted run: the candidates are kept a shard at a time. Several processes share the shards;
OUT must be a place that all of them see. With --beam_options Apache Beam (extra: beam) writes the
dataset, and its workers must see OUT too:

    --beam_options="--runner=DirectRunner"                              # this machine
    --beam_options="--runner=FlinkRunner --flink_master=HOST:8081"      # or Spark, Dataflow

Experts and CLAP hear one clip of each recording: its middle if it is longer than the clip, padded
with zeros at its end if it is shorter. The dataset holds the recordings whole and unchanged.
"""

from maa_jax import command, options
from maa_jax.enhancement.request import Enhancement


def define_flags() -> None:
    """Defines the flags, one for each field of `Enhancement`."""
    options.define_flags(Enhancement)


def main() -> None:
    """Runs the program that this module's docstring describes."""
    request = options.from_flags(Enhancement)
    # After the flags, so that --help and a mistake in them answer at once.
    from maa_jax import devices
    from maa_jax.enhancement.run import enhance

    devices.initialize()
    enhance(request)


def run() -> None:
    """Entry point of `python -m maa_jax.enhance` and of `maa-enhance`."""
    command.run(main, define_flags)


if __name__ == "__main__":
    run()
