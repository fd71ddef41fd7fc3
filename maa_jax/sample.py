"""Makes wav files of sentences.

    python -m maa_jax.sample --prompt="a crow caws" --prompt="rain on a roof" --out=sounds

Each sample is a file of its own, such as sounds/000_a-crow-caws.wav, written as soon as it is made;
sounds/samples.jsonl holds what is needed to make it again. A run that was killed goes on where it
stopped when the same command is given again. Several processes (as for maa_jax.train) share the
prompts among them, and each spreads its batches over its devices; they need a folder in common.
"""

import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from maa_jax import command
from maa_jax.files import file_names, make_folder
from maa_jax.pipeline.journal import Journal


def define_flags() -> None:
    """Defines the flags; by this module as a program alone, or two programs' flags would clash."""
    flags.DEFINE_string("model", "bundled", 'Path of a model folder, or "bundled".')
    flags.DEFINE_multi_string("prompt", [], 'A sentence; may be repeated. "" is any sound.')
    flags.DEFINE_string("prompts_file", None, "A text file with a prompt a line.")
    flags.DEFINE_string("out", None, "Folder for the wav files.", required=True)
    flags.DEFINE_integer("seed", 0, "Of the noise; the same seed gives the same sounds.")
    flags.DEFINE_integer("steps", 100, "Steps of the sampler, 1 to 1000.")
    flags.DEFINE_string("sampler", "ddim", "ddim, plms or dpmpp_2m.")
    flags.DEFINE_float("eta", 0.0, "0 to 1: fresh noise in ddim's steps.")
    flags.DEFINE_string("spacing", "ldm", "Of timesteps: ldm, leading, trailing or linspace.")
    flags.DEFINE_float("guidance_scale", 3.0, "1 is none; larger follows the prompt more closely.")
    flags.DEFINE_float("duration", None, "Seconds; the model's limit by default.")
    flags.DEFINE_integer("num_samples", 1, "Sounds a prompt.")
    flags.DEFINE_integer("num_candidates", None, "Sounds made a prompt; the best by CLAP are kept.")
    flags.DEFINE_integer("batch_size", 8, "Sounds made at a time; sets the memory needed.")
    flags.DEFINE_string("negative_prompt", "", "What to lead away from.")


def read_prompts(prompts: Sequence[str], prompts_file: str | None) -> list[str]:
    """Returns the prompts of the command line, then those of the file, a line each.

    Empty lines are left out, and named on stderr.

    Raises:
      ValueError: there are none, or the file cannot be read.
    """
    prompts = list(prompts)
    if prompts_file is not None:
        try:
            content = pathlib.Path(prompts_file).read_bytes()
        except OSError as e:
            raise ValueError(f"--prompts_file={prompts_file}: cannot be read ({e})") from e
        try:
            lines = content.decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as e:
            line = content.count(b"\n", 0, e.start) + 1
            raise ValueError(
                f"--prompts_file={prompts_file}: cannot be read, line {line} is not UTF-8 ({e}); "
                "save the file as UTF-8"
            ) from e
        if not lines[-1].strip():
            lines.pop()  # behind the last line's end
        empty = [str(number) for number, line in enumerate(lines, 1) if not line.strip()]
        if empty:
            more = f" and {len(empty) - 10} more" if len(empty) > 10 else ""
            print(
                f"--prompts_file={prompts_file}: left out empty line(s) {', '.join(empty[:10])}"
                f'{more}; --prompt="" asks for any sound',
                file=sys.stderr,
            )
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError('no prompts: give --prompt="..." or a --prompts_file that is not empty')
    return prompts


def _chunks(numbers: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yields ascending numbers in runs without gaps, of up to `size`."""
    chunk: list[int] = []
    for number in numbers:
        if chunk and (number != chunk[-1] + 1 or len(chunk) == size):
            yield chunk
            chunk = []
        chunk.append(int(number))
    if chunk:
        yield chunk


def sample(
    prompts: Sequence[str],
    out: str,
    *,
    model: str = "bundled",
    seed: int = 0,
    steps: int = 100,
    sampler: str = "ddim",
    eta: float = 0.0,
    spacing: str = "ldm",
    guidance_scale: float = 3.0,
    duration: float | None = None,
    num_samples: int = 1,
    num_candidates: int | None = None,
    batch_size: int = 8,
    negative_prompt: str = "",
) -> list[pathlib.Path]:
    """Writes a wav file a sample and samples.jsonl into `out`, and says what takes how long.

    Arguments are checked before weights are read. Sounds that are there already, of this request,
    are not made again.

    Returns:
      The wav files, in the order of samples.jsonl.

    Raises:
      ValueError: naming the argument, its value and the remedy.
    """
    # After the flags, so that --help and a mistake in them answer at once.
    import jax
    import tqdm
    from jax.experimental import multihost_utils

    import maa_jax
    from maa_jax.audio import io
    from maa_jax.devices import share
    from maa_jax.encoders import clap
    from maa_jax.model_folder import hub
    from maa_jax.model_folder.index import content_hash, load_index
    from maa_jax.pipeline.pipeline import Pipeline
    from maa_jax.pipeline.request import check_request

    how = dict(
        seed=seed,
        steps=steps,
        sampler=sampler,
        eta=eta,
        spacing=spacing,
        guidance_scale=guidance_scale,
    )
    count = dict(num_samples=num_samples, num_candidates=num_candidates)
    request = how | count | dict(duration=duration, batch_size=batch_size)
    check_request(**request)
    path = hub.fetch_model(model)
    index = load_index(path, meta=("sample_rate", "max_duration"))
    check_request(**request, max_duration=index["max_duration"])
    if num_candidates is not None:
        clap.check_folder(path)
    folder = make_folder(out)

    every = [prompt for prompt in prompts for _ in range(num_samples)]
    files = file_names(every)
    common = how | dict(
        negative_prompt=negative_prompt,
        duration=index["max_duration"] if duration is None else duration,
        sample_rate=index["sample_rate"],
        model_sha256=content_hash(path),
        maa_jax=maa_jax.__version__,
    )
    if num_candidates is not None:
        common |= count
    where = dict(
        model=model if model == "bundled" else str(path.resolve()),
        jax=jax.__version__,
        device=jax.devices()[0].device_kind,
    )
    wanted = {
        file: dict(file=file, prompt=prompt) | common
        for file, prompt in zip(files, every, strict=True)
    }
    journal = Journal(folder, wanted, jax.process_index())

    # Ranking takes a prompt at a time and keeps some of its candidates, else a sound is a unit.
    kept, tries = (1, 1) if num_candidates is None else (num_samples, num_candidates)
    units = share(range(len(every) // kept))
    todo = [u for u in units if any(f not in journal.rows for f in files[u * kept :][:kept])]
    chunks = list(_chunks(todo, max(1, batch_size // tries)))

    clock = time.perf_counter()

    def lap(what: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        print(f"{what}: {now - clock:.1f} s", flush=True)
        clock = now

    pipe = Pipeline.from_pretrained(
        model, devices=jax.local_devices() if jax.local_device_count() > 1 else None
    )
    if chunks:
        pipe.load(ranking=num_candidates is not None)
    lap(f"Read the model in {path}")
    if len(todo) < len(units):
        print(f"Already there: {kept * (len(units) - len(todo))} sound(s)")

    journal.begin()
    writing = 0.0
    with tqdm.tqdm(desc="Sampling", unit="step") as bar:
        for number, chunk in enumerate(chunks):

            def progress(done: int, total: int, _: Any, number: int = number) -> None:
                bar.total = total * len(chunks)
                bar.update(number * total + done - bar.n)

            made = pipe(
                [every[unit * kept] for unit in chunk],
                **request | {"num_samples": kept},
                negative_prompt=negative_prompt,
                start_index=chunk[0] * tries,
                callback=progress,
            )
            begin = time.perf_counter()
            first = chunk[0] * kept
            wavs, extra = made, [dict(index=first + i) for i in range(len(chunk))]
            if num_candidates is not None:
                wavs = made.sounds
                extra = [
                    dict(index=int(i), score=float(score))
                    for i, score in zip(made.indices, made.scores, strict=True)
                ]
            for file, wav, more in zip(files[first : first + len(wavs)], wavs, extra, strict=True):
                io.write_wav(folder / file, wav, pipe.sample_rate)
                # `index` is the sound's start_index: with it the sound can be made again alone.
                journal.add(wanted[file] | more | where)
            writing += time.perf_counter() - begin
    clock += writing
    lap(f"Made {len(todo) * kept} sound(s) of {common['duration']:g} s")
    for part, seconds in pipe.seconds.items():
        print(f"  {part}: {seconds:.1f} s")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("all sounds are made")
    if jax.process_index() == 0:
        journal.finish()
    clock -= writing
    lap("Wrote the files")
    for file in files:
        print(folder / file)
    print(f"How they were made: {folder / 'samples.jsonl'}")
    return [folder / file for file in files]


def main() -> None:
    """Runs the program that this module's docstring describes."""
    f = flags.FLAGS
    names = ("model", "seed", "steps", "sampler", "eta", "spacing", "guidance_scale", "duration")
    names += ("num_samples", "num_candidates", "batch_size", "negative_prompt")
    prompts = read_prompts(f.prompt, f.prompts_file)
    from maa_jax import devices

    devices.initialize()
    sample(prompts, f.out, **{name: f[name].value for name in names})


def run() -> None:
    """Entry point of `python -m maa_jax.sample` and of `maa-sample`."""
    command.run(main, define_flags)


if __name__ == "__main__":
    run()
