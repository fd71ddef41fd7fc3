"""Scores a model.

    python -m maa_jax.evaluate --model=bundled --dataset=sonic_sounds --split=train --out=scores
    python -m maa_jax.evaluate --model=models/retriever --split=test --out=scores/retriever

For each caption of the split a sound is made, and the label of the recording nearest to it compared
with the caption's; a run of several processes shares the prompts among them. Of a folder with a
retriever instead, it is that retriever's recall. Prints a table and writes it to OUT/scores.json.
"""

import json
import time
from typing import Any

from absl import flags

from maa_jax import command
from maa_jax.files import file_names, make_folder


def define_flags() -> None:
    """Defines the flags; by this module as a program alone, or two programs' flags would clash."""
    flags.DEFINE_string("model", "bundled", 'Path of a model folder, or "bundled".')
    flags.DEFINE_string("clap", "bundled", "Model folder whose audio tower measures.")
    flags.DEFINE_string("dataset", "sonic_sounds", "Dataset with labels.")
    flags.DEFINE_string("data_dir", None, "Where TFDS keeps datasets; TFDS's own place by default.")
    flags.DEFINE_string("split", "train", "Whose captions and recordings are taken.")
    flags.DEFINE_string("out", None, "Folder for scores.json.", required=True)
    flags.DEFINE_integer("num_prompts", 0, "Prompts taken, evenly over the captions; 0 for all.")
    flags.DEFINE_integer("captions_per_recording", 1, "Captions that become prompts; 0 for all.")
    flags.DEFINE_integer("steps", 100, "DDIM steps, 1 to 1000.")
    flags.DEFINE_float("guidance_scale", 3.0, "1 is none; larger follows the prompt more closely.")
    flags.DEFINE_integer("seed", 0, "Of the noise; the same seed gives the same sounds.")
    flags.DEFINE_boolean("keep_wavs", False, "Whether the sounds are written, to OUT/wavs.")


def evaluate(
    out: str,
    *,
    model: str = "bundled",
    dataset: str = "sonic_sounds",
    data_dir: str | None = None,
    split: str = "train",
    keep_wavs: bool = False,
    **settings: Any,
) -> dict[str, float]:
    """Scores a model, prints the table and writes `out/scores.json`.

    Args:
        out: folder for the results.
        model: path of a model folder, or "bundled".
        dataset: a dataset with labels.
        data_dir: where TFDS keeps datasets.
        split: whose captions and recordings are taken.
        keep_wavs: whether the sounds are written to `out/wavs`.
        **settings: of `evaluators.label_accuracy.run`.

    Returns:
        The scores by name.

    Raises:
        ValueError: naming the argument, its value and the remedy.
    """
    # After the flags, so that --help and a mistake in them answer at once.
    import jax

    import maa_jax
    from maa_jax.audio import io
    from maa_jax.data.config import DataConfig
    from maa_jax.evaluators import label_accuracy, recall
    from maa_jax.model_folder import hub
    from maa_jax.model_folder.index import content_hash
    from maa_jax.pipeline.pipeline import Pipeline
    from maa_jax.pipeline.request import check_request

    request = {k: settings[k] for k in ("steps", "guidance_scale", "seed") if k in settings}
    check_request(**request)
    folder = make_folder(out)
    path = hub.fetch_model(model)
    data = DataConfig(dataset=dataset, data_dir=data_dir, split=split)
    retrieves = (path / "retriever").is_dir() and not (path / "unet").is_dir()
    pipe = None if retrieves else Pipeline.from_pretrained(model)

    def keep(number: int, prompt: str, wav: Any) -> None:
        wavs = folder / "wavs"
        wavs.mkdir(exist_ok=True)
        name = file_names([prompt])[0].partition("_")[2]
        io.write_wav(wavs / f"{number:04d}_{name}", wav, pipe.sample_rate)

    start = time.perf_counter()
    if retrieves:
        scores = dict(recall.run(str(path), data))
    else:
        scores = dict(label_accuracy.run(pipe, data, keep=keep if keep_wavs else None, **settings))
    if jax.process_index() == 0:
        result = {
            "model": model if model == "bundled" else str(path.resolve()),
            "model_sha256": content_hash(path),
            "dataset": dataset,
            "split": split,
            "settings": settings,
            "maa_jax": maa_jax.__version__,
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "seconds": round(time.perf_counter() - start, 1),
            "scores": scores,
        }
        (folder / "scores.json").write_text(json.dumps(result, indent=2) + "\n")
        if retrieves:
            print("\n".join(f"{name:<28}{value:>9.3f}" for name, value in scores.items()))
        else:
            print(table(scores))
            print(f"{scores['prompts']:.0f} prompts")
        print(f"All scores: {folder / 'scores.json'}")
    return scores


def table(scores: dict[str, float]) -> str:
    """Returns label accuracies as text: a line a kind of feature and k, beside chance."""
    lines = [f"{'right label within':<22}{'generated':>11}{'recordings':>12}{'chance':>9}"]
    for name, value in scores.items():
        features, _, k = name.rpartition("/")
        if features and not k.endswith("_recordings"):
            line = f"{features + ', ' + k.replace('_', ' '):<22}{value:>10.1%} "
            line += f"{scores[f'{name}_recordings']:>11.1%} {scores[f'{k}_chance']:>8.1%}"
            lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Runs the program that this module's docstring describes."""
    from maa_jax import devices

    devices.initialize()
    f = flags.FLAGS
    names = ("model", "clap", "dataset", "data_dir", "split", "num_prompts", "seed", "steps")
    names += ("captions_per_recording", "guidance_scale", "keep_wavs")
    evaluate(f.out, **{name: f[name].value for name in names})


def run() -> None:
    """Entry point of `python -m maa_jax.evaluate` and of `maa-evaluate`."""
    command.run(main, define_flags)


if __name__ == "__main__":
    run()
