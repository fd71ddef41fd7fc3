"""Makes wav files of sentences.

    python -m maa_jax.sample --prompt="a crow caws" --prompt="rain on a roof" --out=sounds

Each sample is a file of its own, such as sounds/000_a-crow-caws.wav; sounds/samples.jsonl holds
what is needed to make it again.
"""

import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Sequence

from absl import app, flags

_SLUG_LENGTH = 48  # of the prompt in a file's name; names over 255 bytes cannot be written


def define_flags() -> None:
    """Defines the flags; by this module as a program alone, or two programs' flags would clash."""
    flags.DEFINE_string("model", "bundled", 'Path of a model folder, or "bundled".')
    flags.DEFINE_multi_string("prompt", [], 'A sentence; may be repeated. "" is any sound.')
    flags.DEFINE_string("prompts_file", None, "A text file with a prompt a line.")
    flags.DEFINE_string("out", None, "Folder for the wav files.", required=True)
    flags.DEFINE_integer("seed", 0, "Of the noise; the same seed gives the same sounds.")
    flags.DEFINE_integer("steps", 100, "DDIM steps, 1 to 1000.")
    flags.DEFINE_float("guidance_scale", 3.0, "1 is none; larger follows the prompt more closely.")
    flags.DEFINE_float("duration", None, "Seconds; the model's limit by default.")
    flags.DEFINE_integer("num_samples", 1, "Sounds a prompt.")
    flags.DEFINE_string("negative_prompt", "", "What to lead away from.")


def read_prompts(prompts: Sequence[str], prompts_file: str | None) -> list[str]:
    """Returns the prompts of the command line, then those of the file, a line each.

    Raises:
      ValueError: there are none, or the file cannot be read.
    """
    prompts = list(prompts)
    if prompts_file is not None:
        try:
            lines = pathlib.Path(prompts_file).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise ValueError(f"--prompts_file={prompts_file}: cannot be read ({e})") from e
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError('no prompts: give --prompt="..." or a --prompts_file that is not empty')
    return prompts


def file_names(prompts: Sequence[str]) -> list[str]:
    """Returns a readable name a sample, numbered, so that no two are the same."""
    digits = max(3, len(str(len(prompts) - 1)))
    return [
        f"{i:0{digits}d}_{_slug(prompt) or 'unconditional'}.wav" for i, prompt in enumerate(prompts)
    ]


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:_SLUG_LENGTH].strip("-")


def make_folder(path: str) -> pathlib.Path:
    """Makes a folder and its parents, and checks that files can be written into it.

    Raises:
      ValueError: that is not possible.
    """
    folder = pathlib.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise ValueError(f"--out={path}: cannot be written ({e}); give another folder") from e
    return folder


def sample(
    prompts: Sequence[str],
    out: str,
    *,
    model: str = "bundled",
    seed: int = 0,
    steps: int = 100,
    guidance_scale: float = 3.0,
    duration: float | None = None,
    num_samples: int = 1,
    negative_prompt: str = "",
) -> list[pathlib.Path]:
    """Writes a wav file a sample and samples.jsonl into `out`, and says what takes how long.

    Arguments are checked before weights are read.

    Returns:
      The wav files, in the order of samples.jsonl.

    Raises:
      ValueError: naming the argument, its value and the remedy.
    """
    # After the flags, so that --help and a mistake in them answer at once.
    import jax
    import tqdm

    import maa_jax
    from maa_jax import bundle
    from maa_jax.audio import io
    from maa_jax.pipeline import Pipeline, check_request

    request = dict(
        seed=seed,
        steps=steps,
        guidance_scale=guidance_scale,
        duration=duration,
        num_samples=num_samples,
    )
    check_request(**request)
    path = bundle.resolve(model)
    index = bundle.load_index(path, meta=("max_duration",))
    check_request(**request, max_duration=index["max_duration"])
    folder = make_folder(out)

    clock = time.perf_counter()

    def lap(what: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        print(f"{what}: {now - clock:.1f} s", flush=True)
        clock = now

    pipe = Pipeline.from_pretrained(model)
    lap(f"Read the model in {path}")

    with tqdm.tqdm(desc="Sampling", unit="step") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        wavs = pipe(prompts, **request, negative_prompt=negative_prompt, callback=progress)
    lap(f"Made {len(wavs)} sound(s) of {wavs.shape[1] / pipe.sample_rate:g} s")

    every = [prompt for prompt in prompts for _ in range(num_samples)]
    files = [folder / name for name in file_names(every)]
    common = dict(
        negative_prompt=negative_prompt,
        seed=seed,
        steps=steps,
        guidance_scale=guidance_scale,
        duration=wavs.shape[1] / pipe.sample_rate if duration is None else duration,
        sample_rate=pipe.sample_rate,
        model=model if model == "bundled" else str(path.resolve()),
        model_sha256=bundle.content_hash(path),
        maa_jax=maa_jax.__version__,
        jax=jax.__version__,
        device=jax.devices()[0].device_kind,
    )
    lines = []
    for i, (prompt, file, wav) in enumerate(zip(every, files, wavs, strict=True)):
        io.write_wav(file, wav, pipe.sample_rate)
        # `index` is the sample's start_index: with it the sound can be made again alone.
        lines.append(json.dumps(dict(file=file.name, prompt=prompt, index=i) | common))
    table = folder / "samples.jsonl"
    temporary = table.with_name(f".{table.name}.{os.getpid()}")
    temporary.write_text("\n".join(lines) + "\n")
    temporary.replace(table)
    lap("Wrote the files")
    for file in files:
        print(file)
    print(f"How they were made: {table}")
    return files


def main(argv: Sequence[str]) -> None:
    """Runs the program that this module's docstring describes."""
    if len(argv) > 1:
        raise app.UsageError(f'{argv[1]!r} is not a flag; quote sentences: --prompt="a crow caws"')
    f = flags.FLAGS
    try:
        prompts = read_prompts(f.prompt, f.prompts_file)
        from maa_jax.bundle import enable_compilation_cache

        enable_compilation_cache()
        sample(
            prompts,
            f.out,
            model=f.model,
            seed=f.seed,
            steps=f.steps,
            guidance_scale=f.guidance_scale,
            duration=f.duration,
            num_samples=f.num_samples,
            negative_prompt=f.negative_prompt,
        )
    except ValueError as e:
        sys.exit(f"maa_jax.sample: {e}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
