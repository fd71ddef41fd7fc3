"""Model folders from training runs and released checkpoints, and back.

    python -m maa_jax.convert --from=workdir --workdir=runs/t2a --out=models/mine
    python -m maa_jax.convert --from=released --checkpoint=maa1_full.ckpt --vocoder=bigvgan \
        --clap=CLAP_weights_2022.pth --tokenizer=bert-base-uncased --out=models/released
    python -m maa_jax.convert --from=released --vocoder=bigvgan --out=models/vocoder
    python -m maa_jax.convert --from=released --checkpoint=ta54_epoch=000216.ckpt \
        --vocoder=bigvgan --tokenizer=openai/clip-vit-large-patch14 --out=models/visual
    python -m maa_jax.convert --from=open_clip --checkpoint=open_clip_model.safetensors \
        --tokenizer=openai/clip-vit-large-patch14 --out=models/clip_h
    python -m maa_jax.convert --from=classifier --checkpoint=melception-21-05-10T09-28-40.pt \
        --mel_statistics=train_means_stds_melspec_10s_22050hz.txt --out=models/melception
    python -m maa_jax.convert --to=released --model=models/mine --out=mine.ckpt

From a workdir: the networks that the run's stage trained (their moving average, where one is kept;
--noema for the last weights). Runs of several stages may be written into one folder, one after
another, to make a whole model. A classifier is a released Melception, Cnn14 or VGGish, which scores
compare sounds by. The second of the released files is the authors' image model, and an OpenCLIP is
what such a model is trained with. From and to released files: needs the extra `torch`.
"""

import pathlib
from typing import Any

from absl import flags

from maa_jax import command


def define_flags() -> None:
    """Defines the flags, which other programs also define: call it only from this program."""
    flags.DEFINE_enum(
        "from",
        None,
        ["workdir", "released", "open_clip", "classifier"],
        "What to convert to a model folder.",
    )
    flags.DEFINE_enum("to", None, ["released"], "What to convert a model folder to.")
    flags.DEFINE_string("workdir", None, "Folder of a run of maa_jax.train.")
    flags.DEFINE_integer("step", None, "Step of the checkpoint; the latest by default.")
    flags.DEFINE_bool("ema", True, "Write the moving average where one is kept.")
    flags.DEFINE_string(
        "checkpoint", None, "maa1_full.ckpt, or another released file, or one with its layout."
    )
    flags.DEFINE_string("mel_statistics", "", "Mean and deviation of a Melception's mel bins.")
    flags.DEFINE_string("vocoder", None, "Folder of a released vocoder's files.")
    flags.DEFINE_enum("vocoder_log", "log10", ["log10", "log"], "Logarithm in the vocoder's mels.")
    flags.DEFINE_string("clap", None, "CLAP_weights_2022.pth, whose audio tower is converted.")
    flags.DEFINE_bool("quick_gelu", False, "Whether an OpenCLIP's activation is OpenAI's.")
    flags.DEFINE_string("tokenizer", "bert-base-uncased", "Folder or hub id of the tokenizer.")
    flags.DEFINE_string("model", None, "Model folder to convert.")
    flags.DEFINE_string("out", None, "Model folder, or .ckpt file, to write.", required=True)
    flags.DEFINE_enum("dtype", "float32", ["float32", "float16"], "Type of the stored weights.")


def _require(f: Any, flag: str, given: str) -> None:
    if not f[flag].value:
        raise ValueError(f"--{flag} is missing: {given} needs it")


def convert(f: Any) -> pathlib.Path:
    """Converts as the flags say, and returns the path of the result."""
    if (f["from"].value is None) == (f.to is None):
        raise ValueError(
            "give either --from=workdir, --from=released, --from=open_clip, --from=classifier or "
            "--to=released"
        )
    from maa_jax.convert import folders  # after the flags, so that --help is answered at once

    if f.to == "released":
        _require(f, "model", "--to=released")
        return folders.folder_to_released(f.model, f.out)
    if f["from"].value == "released":
        return folders.released_to_folder(
            f.out,
            checkpoint=f.checkpoint,
            vocoder=f.vocoder,
            vocoder_log=f.vocoder_log,
            clap=f.clap,
            tokenizer=f.tokenizer,
            dtype=f.dtype,
        )
    if f["from"].value == "open_clip":
        _require(f, "checkpoint", "--from=open_clip")
        return folders.open_clip_to_folder(
            f.out,
            checkpoint=f.checkpoint,
            quick_gelu=f.quick_gelu,
            tokenizer=f.tokenizer,
            dtype=f.dtype,
        )
    if f["from"].value == "classifier":
        _require(f, "checkpoint", "--from=classifier")
        return folders.classifier_to_folder(
            f.out, checkpoint=f.checkpoint, mel_statistics=f.mel_statistics, dtype=f.dtype
        )
    _require(f, "workdir", "--from=workdir")
    return folders.workdir_to_folder(f.workdir, f.out, step=f.step, ema=f.ema, dtype=f.dtype)


def main() -> None:
    """Runs the program that this module's docstring describes."""
    print(f"Wrote {convert(flags.FLAGS)}")


def run() -> None:
    """Entry point of `python -m maa_jax.convert` and of `maa-convert`."""
    command.run(main, define_flags)


if __name__ == "__main__":
    run()
