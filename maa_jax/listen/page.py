"""The page of a listening test: sounds of one loudness under names that tell nothing.

The folder `page/` is all that listeners need, from any static host or as a file; `test.json` beside
it says which sound is whose, and stays with whoever evaluates.
"""

import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

import maa_jax
from maa_jax import pages
from maa_jax.audio import io, levels
from maa_jax.checks import differences
from maa_jax.data.builders import tables
from maa_jax.files import output_folder, read_json, replace_file, sha256, user_path, write_json
from maa_jax.listen.request import ANCHOR, REFERENCE, Listening
from maa_jax.visual import images, videos

TEST = "test.json"
# The paper's scales reach from 20 to 100 (section 5.1); five answers, as of ITU-T P.800.
MOS_VALUES = (20, 40, 60, 80, 100)
# Level of the loudest 0.4 s of all sounds, in dB of full scale; lower where a peak would clip.
_LEVEL = -23.0
_PEAK = -1.0
# Sounds of a prompt may differ in length by so many seconds.
_LENGTHS = 0.25
# Endings of files that are shown as videos.
VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
_LARGEST = 720  # pixels of a picture's longer side
_RATE = 16_000  # of the sounds made here
_TONE = 1.0  # seconds of a tone of the headphone check
_NOISE = 3.0  # seconds of the noise by which the volume is set
_DAMAGED = 4  # prompts of which there is a damaged version; a listener hears one or two
BEEP_TRIALS = 2
LOWPASS = 3500.0  # Hz; the low anchor of ITU-R BS.1534-3


class _Writer:
    """Writes sounds under names from their content and the seed, and keeps what they are."""

    def __init__(self, folder: pathlib.Path, seed: int):
        self._folder = folder
        self._seed = seed
        self.known: dict[str, dict[str, Any]] = {}

    def __call__(self, wav: np.ndarray, rate: int, **about: Any) -> str:
        """Writes [samples] or [samples, channels] as a 16-bit wav file, and returns its name."""
        import soundfile

        pcm = io.pcm16(wav)
        key = json.dumps([self._seed, about], sort_keys=True).encode()
        name = hashlib.sha256(key + pcm.tobytes()).hexdigest()[:16]
        with replace_file(self._folder / f"{name}.wav") as new:
            soundfile.write(new, pcm, rate, "PCM_16", format="WAV")
        self.known[name] = about | {"seconds": round(len(wav) / rate, 3)}
        return name


def write_page(request: Listening) -> pathlib.Path:
    """Writes `page/index.html`, `page/sounds/` and `test.json` of a listening test.

    Returns:
      The page.

    Raises:
      ValueError: sounds are not paired or not of one length, a caption is missing, or the folder
        holds another test.
    """
    texts = request.texts()
    files = _paired(request.systems)
    shown = _shown(request, files)
    captions = _captions(request, files, shown)
    level, gains, rates = _match(request.systems, files)
    with output_folder(request.out) as folder:
        sounds = folder / "page" / "sounds"
        asked = {
            "tests": list(request.test),
            "systems": list(request.systems),
            "files": files,
            "captions": captions,
            "gains_db": {name: [round(g, 2) for g in gains[name]] for name in gains},
            "prompts_per_listener": min(request.prompts_per_listener, len(files)),
            "headphone_check": request.headphone_check,
            "seed": request.seed,
        }
        if any(shown):
            asked["shown"] = [path and sha256(path) for path in shown]
        _check_earlier(folder, asked)
        sounds.mkdir(parents=True, exist_ok=True)
        write = _Writer(sounds, request.seed)
        pictures = _write_shown(folder / "page" / "shown", shown, request.seed)
        page = _write_sounds(request, files, captions, pictures, gains, rates, level, write)
        page["per_listener"] = asked["prompts_per_listener"]
        trials = _trials(page)
        asked |= {
            "level_db": round(level, 2),
            "trials": trials,
            "sounds": write.known,
        }
        text = json.dumps(asked, sort_keys=True).encode()
        page["test"] = hashlib.sha256(text).hexdigest()[:16]
        seconds = [s["seconds"] for s in write.known.values() if s["kind"] == "sound"]
        each = len(page["prompts"][0]["sounds"]) if page["tests"] == ["mushra"] else 1
        each = 2 if page["tests"] == ["ab"] else each
        page["minutes"] = round(2 + trials * (each * np.mean(seconds) + 5) / 60)
        page["texts"] = list(texts.values())
        html = pages.render("listen.html", test=page, title=page["texts"][0]["title"])
        with replace_file(folder / "page" / "index.html") as new:
            new.write_text(html, "utf-8")
        made = {
            "test": page["test"],
            **asked,
            "maa_jax": maa_jax.__version__,
            "languages": list(texts),
            "post_url": request.post_url,
            "index_sha256": hashlib.sha256(html.encode()).hexdigest(),
        }
        write_json(folder / TEST, made)
    return folder / "page" / "index.html"


def _check_earlier(folder: pathlib.Path, asked: Mapping[str, Any]) -> None:
    """Raises a ValueError if the folder holds another test, whose answers may be on their way."""
    if not (folder / TEST).exists():
        return
    different = differences(read_json(folder / TEST), asked)
    if different:
        named = ", ".join(line.partition("=")[0] for line in different)
        raise ValueError(
            f"--out={folder} holds a test with other {named}: give another folder, or remove it"
        )


def _paired(systems: Mapping[str, pathlib.Path]) -> list[str]:
    """Returns the names of the wav files, which must be the same in every folder."""
    names: dict[str, set[str]] = {}
    for system, folder in systems.items():
        if not folder.is_dir():
            raise ValueError(f"sounds={system}={folder}: there is no such folder")
        names[system] = {path.name for path in folder.glob("*.wav")}
        if not names[system]:
            raise ValueError(f"sounds={system}={folder}: there is no wav file in it")
    everywhere = set.union(*names.values())
    for system, own in names.items():
        if lacks := sorted(everywhere - own):
            other = next(s for s in names if lacks[0] in names[s])
            raise ValueError(
                f"sounds={system}={systems[system]} lacks {len(lacks)} of {len(everywhere)} files,"
                f" such as {lacks[0]}, which {other} has: sounds are paired by their names; add or"
                " remove files"
            )
    return sorted(everywhere)


def _shown(request: Listening, files: Sequence[str]) -> list[str]:
    """Returns the path of the picture or video of each file, "" where there is none.

    Raises:
      ValueError: a table is broken, names a picture that is not there, or systems disagree.
    """
    if not {"mos_f", "ab"} & set(request.test):
        return [""] * len(files)
    found: dict[str, str] = {}
    for path in [request.shown_file] if request.shown_file else request.systems.values():
        table = pathlib.Path(path) if request.shown_file else pathlib.Path(path, "samples.jsonl")
        if not request.shown_file and not table.is_file():
            continue
        columns = ("file", "picture") if request.shown_file else ()
        for row in tables.read(epath.Path(table), columns):
            names = [row.text(name) for name in ("picture", "image", "video") if row.text(name)]
            name = row.text("file")
            if not names or name not in files:
                continue
            picture = user_path(names[0])
            if not os.path.isfile(picture):
                row.fail(f"{picture} is not there: start where it is, or correct --shown_file")
            _check_shown(picture)
            if sha256(found.setdefault(name, picture)) != sha256(picture):
                row.fail(f"{name} shows {picture}, and {found[name]} in another system: give one")
    return [found.get(name, "") for name in files]


def _is_video(path: str) -> bool:
    return pathlib.Path(path).suffix.lower() in VIDEOS


def _check_shown(path: str) -> None:
    """Raises a ValueError for what browsers cannot show."""
    if _is_video(path):
        videos.played_ending(path)
    else:
        images.load(path)


def _write_shown(folder: pathlib.Path, shown: Sequence[str], seed: int) -> list[str]:
    """Writes what is shown under names from its content; returns the file of each, "" for none.

    Pictures are written anew, up to 720 pixels, without what a camera noted; videos lose their
    sound, which would tell which sound is the recording's.
    """
    names: dict[str, str] = {"": ""}
    for path in dict.fromkeys(shown):
        if not path:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        out = folder / hashlib.sha256(f"{seed} {sha256(path)}".encode()).hexdigest()[:16]
        if _is_video(path):
            names[path] = out.name + videos.played_ending(path)
            videos.mux(path, None, _RATE, folder / names[path])
            continue
        import PIL.Image

        picture = PIL.Image.fromarray(images.load(path))
        picture.thumbnail((_LARGEST, _LARGEST))
        with replace_file(out.with_suffix(".png")) as new:
            picture.save(new, "PNG")
        names[path] = f"{out.name}.png"
    return [names[path] for path in shown]


def _captions(request: Listening, files: Sequence[str], shown: Sequence[str]) -> list[str]:
    """Returns the caption of each file, "" where none is shown or known."""
    if not {"mos_f", "ab"} & set(request.test):
        return [""] * len(files)
    from maa_jax.evaluators import sources  # loads JAX

    found: dict[str, tuple[str, str]] = {}
    for system, folder in request.systems.items():
        sounds = sources.folder(folder, request.captions_file)
        for name, captions in zip(sounds.names, sounds.captions, strict=True):
            if not captions:
                continue
            first, caption = found.setdefault(name, (system, captions[0]))
            if caption != captions[0]:
                raise ValueError(
                    f"{name} is {caption!r} in {first} and {captions[0]!r} in {system}: sounds of"
                    " one name need one caption"
                )
    seen = {name for name, path in zip(files, shown, strict=True) if path}
    missing = [name for name in files if not found.get(name, ("", ""))[1] and name not in seen]
    if missing and "mos_f" in request.test:
        raise ValueError(
            f"test=mos_f: {len(missing)} of {len(files)} sounds have no caption and no picture, "
            f"such as {missing[0]}: give --captions_file, --shown_file, or a folder with "
            "samples.jsonl"
        )
    return ["" if name in seen else found.get(name, ("", ""))[1] for name in files]


def _match(
    systems: Mapping[str, pathlib.Path], files: Sequence[str]
) -> tuple[float, dict[str, list[float]], dict[str, list[int]]]:
    """Finds how sounds get one loudness, by which otherwise the louder one seems the better.

    Returns:
      The common level of the loudest 0.4 s in dB of full scale; the gain of each file of each
      system in dB, 0 for a silent one; and its sample rate in Hz.
    """
    import soundfile

    found: dict[str, list[float]] = {}
    rates: dict[str, list[int]] = {}
    seconds: dict[str, list[float]] = {}
    level = _LEVEL
    for system, folder in systems.items():
        found[system], rates[system], seconds[system] = [], [], []
        for name in files:
            wav = io.load(folder / name)  # names what is wrong with a file, before its rate is read
            rate = soundfile.info(folder / name).samplerate
            wav = wav if rate == io.SAMPLE_RATE else io.load(folder / name, rate)
            own = levels.loudest(wav, rate)
            silent = io.is_silent(wav)
            if not silent:
                peak = 20 * np.log10(float(np.abs(wav).max()))
                level = min(level, own - peak + _PEAK)
            found[system].append(np.nan if silent else own)
            rates[system].append(rate)
            seconds[system].append(len(wav) / rate)
    for i, name in enumerate(files):
        lengths = {system: seconds[system][i] for system in systems}
        short, long = (choose(lengths, key=lambda s: lengths[s]) for choose in (min, max))
        if lengths[long] - lengths[short] > _LENGTHS:
            raise ValueError(
                f"{name} has {lengths[short]:.2f} s in {short} and {lengths[long]:.2f} s in {long}:"
                f" cut sounds of one name to one length (within {_LENGTHS} s)"
            )
    if all(np.isnan(own).all() for own in found.values()):
        raise ValueError("every sound is silent: there is nothing to hear")
    gains = {system: [0.0 if np.isnan(o) else level - o for o in found[system]] for system in found}
    pairs = ((system, i) for system in found for i in range(len(files)))
    if silent := [f"{s}/{files[i]}" for s, i in pairs if np.isnan(found[s][i])]:
        logging.warning("%d sounds are silent, such as %s", len(silent), silent[0])
    return level, gains, rates


def _write_sounds(
    request: Listening,
    files: Sequence[str],
    captions: Sequence[str],
    shown: Sequence[str],
    gains: Mapping[str, Sequence[float]],
    rates: Mapping[str, Sequence[int]],
    level: float,
    write: _Writer,
) -> dict[str, Any]:
    """Writes all sounds, and returns what the page knows: of systems neither names nor order."""
    rng = np.random.default_rng(request.seed)
    # Neither the order of systems nor that of prompts tells which is which.
    systems = [list(request.systems)[i] for i in rng.permutation(len(request.systems))]
    order = rng.permutation(len(files))
    mushra = request.test == ("mushra",)
    prompts: list[dict[str, Any]] = []
    damaged: list[dict[str, Any]] = []

    def matched(system: str, i: int) -> np.ndarray:
        wav = io.load(request.systems[system] / files[i], rates[system][i])
        return wav * np.float32(10 ** (gains[system][i] / 20))

    for i in map(int, order):
        prompt: dict[str, Any] = {"caption": captions[i], "shown": shown[i], "sounds": []}
        for system in systems:
            wav, about = matched(system, i), {"file": files[i], "system": system}
            prompt["sounds"].append(write(wav, rates[system][i], kind="sound", **about))
        if mushra:
            wav, rate = matched(REFERENCE, i), rates[REFERENCE][i]
            about = {"file": files[i], "system": ANCHOR}
            prompt["sounds"].append(write(low_passed(wav, rate), rate, kind="sound", **about))
            prompt["reference"] = write(wav, rate, kind="reference", file=files[i])
        best = REFERENCE if REFERENCE in systems else systems[0]
        heard = not io.is_silent(matched(best, i))
        if set(request.test) & {"mos_q", "ab"} and heard and len(damaged) < _DAMAGED:
            wav, rate = damage(matched(best, i), rates[best][i]), rates[best][i]
            wav *= np.float32(10 ** ((level - levels.loudest(wav, rate)) / 20))
            clean = prompt["sounds"][systems.index(best)]
            bad = write(wav, rate, kind="damaged", file=files[i], of=clean)
            damaged.append({"prompt": len(prompts), "sounds": [bad, clean]})
        prompts.append(prompt)
    counts = range(1, len(MOS_VALUES) + 1) if {"mos_q", "mos_f"} & set(request.test) else ()
    noise = pink_noise(rng)
    noise *= np.float32(10 ** ((level - levels.loudest(noise, _RATE)) / 20))
    checks = list(itertools.permutations(range(3), 2)) if request.headphone_check else []
    return {
        "tests": list(request.test),
        "values": list(MOS_VALUES),
        "seed": request.seed,
        "post_url": request.post_url,
        "prompts": prompts,
        "damaged": damaged,
        "beep_trials": BEEP_TRIALS,
        "beeps": [write(beeps(n, level), _RATE, kind="beeps", beeps=n) for n in counts],
        "volume": write(noise, _RATE, kind="volume"),
        "headphones": [
            write(three_tones(quiet, opposed, level), _RATE, kind="headphones", quietest=quiet)
            for quiet, opposed in checks
        ],
    }


def _trials(page: Mapping[str, Any]) -> int:
    """Returns how many trials a listener answers, as `trialsOf` of the page makes them."""
    each = page["per_listener"]
    if page["tests"] == ["mushra"]:
        return each
    if page["tests"] == ["ab"]:
        return each + min(2, len(page["damaged"]))
    return each * len(page["prompts"][0]["sounds"]) + BEEP_TRIALS + min(1, len(page["damaged"]))


def three_tones(quiet: int, opposed: int, level: float) -> np.ndarray:
    """Returns three tones of which one is the quietest, on headphones alone.

    One tone has 6 dB less than the others. Another has opposite signs in the two channels: in the
    air these cancel, and it seems the quietest (Woods et al. 2017, "Headphone screening to
    facilitate web-based auditory experiments").

    Args:
      quiet: index of the tone with 6 dB less.
      opposed: index of the tone with opposite signs.
      level: level of the other tone, in dB of full scale.

    Returns:
      float32 [samples, 2]: tones of 200 Hz and 1 s with ramps of 0.1 s, 0.5 s apart.
    """
    t = np.arange(round(_TONE * _RATE)) / _RATE
    ramp = np.minimum(1, np.minimum(t, _TONE - t) / (0.1 * _TONE))
    tone = np.sqrt(2) * 10 ** (level / 20) * np.sin(2 * np.pi * 200 * t)
    tone *= np.sin(np.pi / 2 * ramp) ** 2
    gap = np.zeros((round(0.5 * _TONE * _RATE), 2))
    parts = [gap]
    for i in range(3):
        left = tone * (10 ** (-6 / 20) if i == quiet else 1)
        parts += [np.stack([left, -left if i == opposed else left], axis=1), gap]
    return np.concatenate(parts).astype(np.float32)


def beeps(count: int, level: float) -> np.ndarray:
    """Returns `count` beeps of 1 kHz in 3 s, float32 [samples]; level in dB of full scale."""
    wav = np.zeros(round(3 * _TONE * _RATE))
    t = np.arange(round(0.15 * _RATE * _TONE)) / _RATE
    beep = np.sqrt(2) * 10 ** (level / 20) * np.sin(2 * np.pi * 1000 * t)
    beep *= np.hanning(len(t)) ** 0.25
    for i in range(count):
        start = round((0.2 + 0.5 * i) * _TONE * _RATE)
        wav[start : start + len(t)] = beep
    return wav.astype(np.float32)


def pink_noise(rng: np.random.Generator) -> np.ndarray:
    """Returns noise with equal power in each octave above 40 Hz, float32 [samples]."""
    samples = round(_NOISE * _RATE)
    hertz = np.fft.rfftfreq(samples, 1 / _RATE)
    spectrum = np.fft.rfft(rng.standard_normal(samples)) / np.sqrt(np.maximum(hertz, 40))
    return np.fft.irfft(spectrum, samples).astype(np.float32)


def low_passed(wav: np.ndarray, rate: int) -> np.ndarray:
    """Returns MUSHRA's low anchor: [samples] without what lies above 3.5 kHz (gone from 4 kHz)."""
    hertz = np.fft.rfftfreq(len(wav), 1 / rate)
    gain = 0.5 + 0.5 * np.cos(np.pi * np.clip((hertz - LOWPASS) / 500, 0, 1))
    return np.fft.irfft(np.fft.rfft(wav) * gain, len(wav)).astype(np.float32)


def damage(wav: np.ndarray, rate: int) -> np.ndarray:
    """Returns [samples] that nobody takes for the better: clipped by 30 dB, half of it cut out."""
    clipped = np.clip(wav * np.float32(10**1.5) / np.abs(wav).max(), -1, 1)
    return clipped * (np.arange(len(wav)) // round(0.05 * rate) % 2 == 0)
