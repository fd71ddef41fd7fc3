"""Generates wav files from text prompts.

    python -m maa_jax.sample --prompt="a crow caws" --prompt="rain on a roof" --out=sounds

Each sound is a file of its own, such as sounds/000_a-crow-caws.wav, written as soon as it is made,
and one of minutes while it is made, as 000_a-crow-caws.part.wav; sounds/samples.jsonl holds what is
needed to make it again. The same command resumes a run that was killed, and no request overwrites
the sounds of another. Several processes (as for maa_jax.train) divide the prompts among them, and
each spreads its batches over its devices; they need a shared folder.
"""

import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from maa_jax import command, options
from maa_jax.checks import check_text
from maa_jax.files import file_names, sha256, user_path
from maa_jax.options import REQUIRED, option
from maa_jax.pipeline.request import Request, is_list

if TYPE_CHECKING:
    from maa_jax.model_folder.model import Model
    from maa_jax.pipeline.pipeline import Pipeline


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling(Request):
    """Which model makes which sounds, how, and where they are written."""

    model: str = option("bundled", 'Model folder, hub id, or "bundled".', recorded=False)
    prompt: tuple[str, ...] = option(
        (), 'Prompt; may be repeated. "" is any sound.', repeated=True, recorded=False
    )
    prompts_file: str | None = option(
        None, "Text file with one prompt per line.", path=True, recorded=False
    )
    image: tuple[str, ...] = option(
        (),
        "Picture in place of a prompt, for a model trained with configs/v2a.py; may be repeated.",
        repeated=True,
        recorded=False,
    )
    video: tuple[str, ...] = option(
        (),
        "Video in place of a prompt; its sound is as long as it is. May be repeated.",
        repeated=True,
        recorded=False,
    )
    mux: bool = option(
        False, "Write a copy of each video with its sound beside the wav file.", recorded=False
    )
    audio: tuple[str, ...] = option(
        (),
        "Recording that the sounds are made from: one for all prompts, or one for each; or several "
        "for one prompt. See --edit.",
        repeated=True,
        recorded=False,
    )
    mask: tuple[str, ...] = option(
        (),
        'Part of the recording that is made anew, while the rest stays: seconds "1.5-2" or "3-", '
        'with Hz "1.5-2:500-3000", "continue:2" or "before:2" seconds added, "bandwidth:4000" all '
        "above, a picture (white), or a recording whose silence is filled. May be repeated.",
        repeated=True,
        recorded=False,
    )
    out: str = option(REQUIRED, "Folder for the wav files.", path=True, recorded=False)

    def __post_init__(self):
        super().__post_init__()
        if self.mux and not self.video:
            raise ValueError("mux=True: there is no video: give --video, or leave it out")
        kinds = [name for name in ("prompt", "image", "video") if getattr(self, name)]
        if self.prompts_file and "prompt" not in kinds:
            kinds.append("prompts_file")
        if len(kinds) > 1:
            raise ValueError(f"{' and '.join(kinds)}: give one of prompts, images and videos")
        if self.mask:
            self.check_masked()
        if not self.audio:
            self.check_unedited(mask=self.mask)
        elif self.duration is not None:
            raise ValueError(
                f"duration={self.duration!r}: the sounds have the length of audio: leave it out"
            )
        if self.output != "wav" or self.start_index or is_list(self.duration):
            raise ValueError(
                f"output={self.output!r}, start_index={self.start_index}, duration="
                f"{self.duration!r}: files are wavs of one length, from index 0; for others call "
                "maa_jax.Pipeline"
            )


def define_flags() -> None:
    """Defines the flags, which other programs also define: call it only from this program."""
    options.define_flags(Sampling)


def read_prompts(prompts: Sequence[str], prompts_file: str | None) -> list[str]:
    """Returns the prompts of the command line, then those of the file, one per line.

    Empty lines are skipped and reported on stderr.

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
            lines.pop()  # after the final line break
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


def sample(prompts: Sequence[str], sampling: Sampling) -> list[pathlib.Path]:
    """Writes one wav file per sound and samples.jsonl, and prints the time that each part takes.

    The request is checked before weights are read. Sounds that an earlier run of the same request
    wrote are not made again, and those of other requests are never overwritten.

    Args:
      prompts: prompts, as `read_prompts` returns them; [] with pictures or videos.
      sampling: options of the sounds, and where they are written.

    Returns:
      The wav files, in the order of samples.jsonl.

    Raises:
      ValueError: an option is invalid; the error names it, its value and the remedy.
    """
    for prompt in prompts:
        check_text("prompt", prompt)
    # Imported after the flags are parsed, so that --help and mistakes in them are answered at once.
    from maa_jax.devices import hold_folder
    from maa_jax.encoders import clap
    from maa_jax.encoders.visual import check_sees
    from maa_jax.model_folder import hub
    from maa_jax.model_folder.model import read_model

    model = read_model(hub.fetch_model(sampling.model))
    shown = sampling.image or sampling.video
    if shown:
        check_sees(model.path)
        prompts = [pathlib.Path(path).stem for path in shown]
    elif len(prompts) == 1:
        prompts = [*prompts] * max(1, len(sampling.audio))
    sampling.coefficients(model.schedule)
    sampling.durations(model.max_duration, 1)
    if sampling.ranks:
        clap.check_folder(model.path)
    with hold_folder(sampling.out) as folder:
        return _sample(prompts, sampling, model, folder)


def _sample(
    prompts: Sequence[str], sampling: Sampling, model: "Model", folder: pathlib.Path
) -> list[pathlib.Path]:
    import jax
    from jax.experimental import multihost_utils

    from maa_jax.audio import io
    from maa_jax.devices import share
    from maa_jax.pipeline.journal import Journal
    from maa_jax.pipeline.pipeline import Pipeline

    every = [prompt for prompt in prompts for _ in range(sampling.num_samples)]
    files, common = file_names(every), _common(sampling, model)
    own = _own(prompts, sampling, model)
    wanted = {
        file: {"file": file, "prompt": prompt} | common | own[i // sampling.num_samples]
        for i, (file, prompt) in enumerate(zip(files, every, strict=True))
    }
    journal = Journal(folder, wanted, jax.process_index())

    kept, tries = _unit(sampling)
    units = share(range(len(every) // kept))
    size = max(1, sampling.batch_size // tries)
    # A batch is made as a whole or not at all, so that a sound is the same to its last bit whether
    # or not the run was interrupted: programs for other batch sizes round differently.
    chunks = [
        chunk
        for chunk in (units[start : start + size] for start in range(0, len(units), size))
        if any(file not in journal.rows for file in files[chunk[0] * kept : (chunk[-1] + 1) * kept])
    ]
    mine = files[units[0] * kept : (units[-1] + 1) * kept] if units else []
    there = [file for file in mine if file in journal.rows]
    if there:
        print(f"Already there: {len(there)} sound(s)")
    if journal.broken:
        print(f"Made again, since not whole: {len(journal.broken)} such as {journal.broken[0]}")
    if chunks:
        clock = time.perf_counter()
        several = jax.local_device_count() > 1
        pipe = Pipeline.from_pretrained(
            sampling.model, devices=jax.local_devices() if several else None
        )
        pipe.load(ranking=sampling.ranks)
        journal.begin()
        print(f"Read the model in {model.path}: {time.perf_counter() - clock:.1f} s", flush=True)
        clock, where = time.perf_counter(), _where(model)
        with pipe.timed() as spent:
            writers: dict[int, io.GrowingWav] = {}
            for place, piece, row in _sounds(pipe, sampling, every, chunks):
                name = files[place]
                if name in journal.rows:
                    continue
                begin = time.perf_counter()
                if place not in writers:
                    samples = max(1, round(wanted[name]["duration"] * pipe.sample_rate))
                    writers[place] = io.GrowingWav(folder / name, samples, pipe.sample_rate)
                if writers[place].write(piece):
                    del writers[place]
                    if sampling.mux:
                        _mux(sampling.video[place // sampling.num_samples], folder / name)
                    journal.add(wanted[name] | row | where)
                spent["files"] += time.perf_counter() - begin
        took = time.perf_counter() - clock
        seconds = " and ".join(f"{x:g}" for x in sorted({wanted[f]["duration"] for f in mine})[:3])
        print(f"Made {len(mine) - len(there)} sound(s) of {seconds} s: {took:.1f} s")
        for part, took in spent.items():
            print(f"  {part}: {took:.1f} s")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("all sounds are made")
    if jax.process_index() == 0:
        journal.finish()
    for file in files:
        print(folder / file)
    print(f"How they were made: {folder / 'samples.jsonl'}")
    return [folder / file for file in files]


def _common(sampling: Sampling, model: "Model") -> dict[str, Any]:
    """Returns the fields that all lines share and that must agree when a run is resumed."""
    import maa_jax
    from maa_jax.model_folder.index import content_hash

    record = sampling.record()
    if not sampling.ranks:  # then a sound is the same whatever the number of sounds
        del record["num_samples"], record["num_candidates"]
    return record | {
        "duration": sampling.durations(model.max_duration, 1)[0],
        "sample_rate": model.sample_rate,
        "model_sha256": content_hash(model.path),
        "maa_jax": maa_jax.__version__,
    }


def _own(prompts: Sequence[str], sampling: Sampling, model: "Model") -> list[dict[str, Any]]:
    """Returns the fields of each prompt's lines: its duration, and the recording that it edits.

    Raises:
      ValueError: times in a prompt, a recording or the mask cannot be used.
    """
    from maa_jax.pipeline.prompts import check_heard, read

    shown = [user_path(path) for path in sampling.image or sampling.video]
    kind = "image" if sampling.image else "video"
    asked = read(
        None if shown else prompts,
        shown if sampling.image else None,
        shown if sampling.video else None,
        model.max_duration,
    )
    own: list[dict[str, Any]] = [
        {"prompt": "", kind: path, f"{kind}_sha256": sha256(path)} for path in shown
    ] or [{} for _ in prompts]
    lengths = sampling.durations(model.max_duration, len(own))
    if not sampling.audio:
        for row, prompt, seconds in zip(own, asked, lengths, strict=True):
            stated = sampling.duration is None and prompt.seconds is not None
            row["duration"] = prompt.seconds if stated else seconds
    else:
        own = _edits(own, prompts, sampling, model)
    check_heard(asked, [row["duration"] for row in own])
    samples = [round(row["duration"] * model.sample_rate) for row in own]
    sampling.check_loop(samples, model)
    return own


def _edits(
    own: Sequence[dict[str, Any]], prompts: Sequence[str], sampling: Sampling, model: "Model"
) -> list[dict[str, Any]]:
    """Returns each prompt's fields with those of the recording that it edits."""
    from maa_jax.pipeline import editing

    found = editing.read(sampling.audio, sampling.mask or None, len(prompts), model.mel)
    paths = [user_path(path) for path in sampling.audio] * (len(prompts) // len(sampling.audio))
    masks = [
        {"mask": item} | ({"mask_sha256": sha256(path)} if os.path.isfile(path) else {})
        for item, path in zip(sampling.mask, map(user_path, sampling.mask), strict=True)
    ]
    return [
        row
        | {
            "audio": path,
            "audio_sha256": sha256(path),
            "masks": masks,
            "duration": len(wav) / model.sample_rate,
        }
        for row, path, wav in zip(own, paths, found.wavs, strict=True)
    ]


def _mux(video: str, wav_file: pathlib.Path) -> None:
    """Writes a copy of a video with a sound, beside the sound's file."""
    import soundfile

    from maa_jax.visual import videos

    wav, sample_rate = soundfile.read(wav_file, dtype="float32")
    videos.mux(user_path(video), wav, sample_rate, wav_file.with_suffix(pathlib.Path(video).suffix))


def _where(model: "Model") -> dict[str, Any]:
    """Returns the fields that record the environment and may differ when a run is resumed."""
    import jax

    from maa_jax.model_folder import hub

    bundled = model.path == hub.BUNDLED
    return {
        "model": "bundled" if bundled else str(model.path.resolve()),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def _unit(sampling: Sampling) -> tuple[int, int]:
    """Returns the number of sounds kept per unit of work, and the number made for them.

    With ranking a unit is a prompt, of whose candidates some are kept; otherwise it is one sound.
    """
    return (sampling.num_samples, sampling.tries) if sampling.ranks else (1, 1)


def _sounds(
    pipe: "Pipeline", sampling: Sampling, every: Sequence[str], chunks: Sequence[Sequence[int]]
) -> Iterator[tuple[int, Any, dict[str, Any]]]:
    """Makes the sounds of some units, and shows the progress.

    Args:
      pipe: pipeline that makes the sounds.
      sampling: options of the sounds.
      every: prompt of each file.
      chunks: units that are made together.

    Yields:
      The index of a file, its sound or the next piece of a very long one, and the fields of its
      line that are its own. `index` is the `start_index` with which the sound can be made again
      alone.
    """
    import tqdm

    kept, tries = _unit(sampling)
    per_prompt = sampling.num_samples // kept  # units
    with tqdm.tqdm(desc="Sampling", unit="step") as bar:
        for number, chunk in enumerate(chunks):

            def progress(done: int, total: int, _: Any, number: int = number) -> None:
                bar.total = total * len(chunks)
                bar.update(number * total + done - bar.n)

            first = chunk[0]
            audio: Any = None
            if sampling.audio:
                several = len(sampling.audio) > 1
                audio = [sampling.audio[unit // per_prompt * several] for unit in chunk]
            shown = sampling.image or sampling.video
            seen: Any = [user_path(shown[unit // per_prompt]) for unit in chunk] if shown else None
            make: Any = pipe if sampling.ranks else pipe.stream
            made = make(
                None if shown else [every[unit * kept] for unit in chunk],
                image=seen if sampling.image else None,
                video=seen if sampling.video else None,
                audio=audio,
                mask=sampling.mask or None,
                callback=progress,
                **sampling.keywords() | {"num_samples": kept, "start_index": first * tries},
            )
            if sampling.ranks:
                for i, (wav, score, index) in enumerate(zip(*made, strict=True)):
                    yield first * kept + i, wav, {"index": int(index), "score": float(score)}
            else:
                for i, piece in made:
                    yield first + i, piece, {"index": first + i}


def main() -> None:
    """Runs the program that this module's docstring describes."""
    sampling = options.from_flags(Sampling)
    prompts: list[str] = []
    if not (sampling.image or sampling.video):
        prompts = read_prompts(sampling.prompt, sampling.prompts_file)
    from maa_jax import devices

    devices.initialize()
    sample(prompts, sampling)


def run() -> None:
    """Entry point of `python -m maa_jax.sample` and of `maa-sample`."""
    command.run(main, define_flags)


if __name__ == "__main__":
    run()
