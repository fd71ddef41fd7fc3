"""Trains one stage: `python -m maa_jax.train --config=configs/STAGE.py[:arg] --workdir=DIR`.

Any key of the config can be set on the command line, as in `--config.batch_size=32`. The same
command resumes a run from its latest whole checkpoint, bit for bit. SIGTERM and Ctrl-C save a
checkpoint and end the run, with exit status 143 and 130; a second Ctrl-C ends it at once.
"""

from absl import flags

from maa_jax import command


def define_flags() -> None:
    """Defines the flags, which other programs also define: call it only from this program."""
    command.define_config_flag()
    flags.DEFINE_string("workdir", None, "Folder of the run, local or in a bucket.", required=True)


def main() -> None:
    """Runs the program that this module's docstring describes."""
    # Imported after the flags are parsed, so that --help and mistakes in them are answered at once.
    from maa_jax import devices
    from maa_jax.train.loop import train

    devices.initialize()
    train(flags.FLAGS.config, flags.FLAGS.workdir)


def run() -> None:
    """Entry point of `python -m maa_jax.train` and of `maa-train`."""
    command.run(main, define_flags)


if __name__ == "__main__":
    run()
