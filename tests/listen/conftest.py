import json

import numpy as np
import pytest

from maa_jax.audio import io
from maa_jax.listen import page
from maa_jax.listen.request import Listening

CAPTIONS = ["a crow caws", "rain on a roof", "a <b>bell</b>", "steps on gravel", "waves", "wind"]
SYSTEMS = ("ours", "theirs", "reference")


def write_system(folder, number, prompts, seconds):
    rng = np.random.default_rng(number)
    folder.mkdir(parents=True)
    lines = []
    for i in range(prompts):
        wav = rng.standard_normal(round(seconds * 16000)) * 0.1 / (number + 1)
        wav[len(wav) // 2] = 0.9  # a click that a careless gain would clip
        io.write_wav(folder / f"{i}.wav", wav, 16000)
        lines.append(json.dumps({"file": f"{i}.wav", "prompt": CAPTIONS[i]}))
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes the page of a test with short sounds: make(systems=..., prompts=..., **options)."""
    monkeypatch.setattr(page, "_TONE", 0.1)
    monkeypatch.setattr(page, "_NOISE", 0.2)

    def made(*, systems=SYSTEMS, prompts=2, seconds=0.1, out="out", **options):
        for number, system in enumerate(systems):
            if not (tmp_path / system).exists():
                write_system(tmp_path / system, number, prompts, seconds)
        sounds = tuple(f"{system}={tmp_path / system}" for system in systems)
        page.write_page(Listening(sounds=sounds, out=tmp_path / out, **options))
        return tmp_path / out

    return made
