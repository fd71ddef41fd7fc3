"""The demo's page, made from small but real parts, and opened in a browser."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from maa_jax import report
from maa_jax.audio import io
from maa_jax.audio.mel import MelConfig
from maa_jax.training.metrics import Metrics

SECONDS = {"bundled": 1.25, "trained": 0.75}
PROMPTS = ["a crow caws", 'rain <on> a "tin" roof']
CLIP = 32768  # samples; the tiny model's limit of 2.048 s


def tone(seconds, hertz):
    t = np.arange(round(seconds * 16000)) / 16000
    return (0.4 * np.sin(2 * np.pi * hertz * t) * np.exp(-3 * t)).astype(np.float32)


def write_samples(folder, seconds):
    folder.mkdir()
    lines = []
    for i, prompt in enumerate(PROMPTS):
        io.write_wav(folder / f"{i}.wav", tone(seconds, 300 * (i + 1)), 16000)
        lines.append(json.dumps({"file": f"{i}.wav", "prompt": prompt, "index": i}))
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")


def write_run(folder, data):
    folder.mkdir()
    config = {"batch_size": 8, "total_steps": 100, "data": data, "mel": {"sample_rate": 16000}}
    (folder / "config.json").write_text(json.dumps(config))
    metrics = Metrics(str(folder), first_step=0, total_steps=100, batch_size=8)
    for step in range(10, 101, 10):
        metrics.write_scalars(step, {"train/loss": 1 / step, "train/learning_rate": 0.1})
        if step % 50 == 0:
            metrics.write_scalars(step, {"validation/loss": 2 / step})
    metrics.write_summary(100, {"image/sample": np.zeros((1, 8, 8, 1))}, 16000)
    metrics.close()


@pytest.fixture(scope="module")
def workdir(tiny_model, tmp_path_factory):
    demo = tmp_path_factory.mktemp("demo")
    sounds = demo / "recordings"
    sounds.mkdir()
    table = ["file,caption,split"]
    for i, split in enumerate(["train"] * 2 + ["validation"] * 3):
        io.write_wav(sounds / f"{i}.wav", tone(0.5 + 0.2 * i, 220 * (i + 1)), 16000)
        table.append(f"{i}.wav,tone number {i},{split}")
    (demo / "table.csv").write_text("\n".join(table) + "\n")
    data = {
        "dataset": "audio_folder",
        "data_dir": str(demo / "data"),
        "folder": str(sounds),
        "captions_file": str(demo / "table.csv"),
        "split": "train",
        "eval_split": "validation",
        "samples": CLIP,
    }
    for name, seconds in SECONDS.items():
        write_samples(demo / name, seconds)
    for stage in report.STAGES:
        write_run(demo / stage, data)
    shutil.copytree(tiny_model, demo / "models" / "t2a")
    # Sampling was interrupted once and started again.
    (demo / "times.tsv").write_text("bundled\t20\nclap\t61\ntrained\t5\ntrained\t7\n")
    return demo


@pytest.fixture(scope="module")
def page(workdir):
    return report.write_report(workdir)


def test_the_page_needs_no_other_file(page):
    text = page.read_text("utf-8")
    addresses = re.findall(r'(?:src|href|srcset)="([^"]{0,40})', text)
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert "url(" not in text and "@import" not in text and "<script" not in text


def test_the_page_shows_prompts_recordings_losses_and_times(page):
    text = re.sub(r'"data:[^"]*"', '""', page.read_text("utf-8"))
    assert "“a crow caws”" in text
    assert "rain &lt;on&gt; a &#34;tin&#34; roof" in text
    assert [f"“tone number {i}”" in text for i in range(5)] == [False, False, True, True, True]
    assert text.count("loss of ") == len(report.STAGES)
    assert "learning_rate" not in text
    assert "1 min 01 s" in text and "12 s" in text and "1 min 33 s" in text


def test_the_longest_recording_of_each_class_is_shown():
    examples = [("drum", 1.0), ("bell", 2.0), ("drum", 3.0), (None, 0.5), (None, 0.7)]
    examples = [
        {"id": str(i), "seconds": seconds, "labels": [label] if label else []}
        for i, (label, seconds) in enumerate(examples)
    ]
    assert report.longest_of_each_class(examples) == [2, 1, 4, 3]


def test_scalars_of_both_splits_are_read(workdir):
    scalars = report.read_scalars(workdir / "clap")
    assert scalars["validation/loss"] == [
        (50, pytest.approx(0.04)),
        (100, pytest.approx(0.02)),
    ]
    assert len(scalars["train/loss"]) == 10


@pytest.mark.parametrize("missing", ["times.tsv", "bundled/samples.jsonl", "t2a/config.json"])
def test_an_unfinished_demo_is_an_error_that_names_what_is_missing(workdir, missing, tmp_path):
    first = missing.split("/")[0]
    for path in workdir.iterdir():
        if path.name not in (first, "report.html"):
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises((ValueError, FileNotFoundError), match=first):
        report.write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_spectrogram_is_drawn_for_light_and_dark_themes():
    image = report.spectrogram(np.zeros((32, 80), np.float32), MelConfig(), "a crow caws")
    assert image.light.startswith("data:image/png;base64,")
    assert image.dark.startswith("data:image/png;base64,")
    assert image.light != image.dark
    assert image.about == "spectrogram: a crow caws"


# Runs when the page has loaded, and reports how the browser loaded each sound and image.
PROBE = """<script>
window.addEventListener("load", async () => {
  const ready = [...document.querySelectorAll("audio")].map(audio => new Promise(done => {
    if (audio.readyState >= 1) return done();
    audio.onloadedmetadata = audio.onerror = done;
    audio.load();
  }));
  await Promise.all(ready);
  const found = {
    audio: [...document.querySelectorAll("audio")].map(
      audio => [audio.ariaLabel, audio.duration, audio.error && audio.error.message]),
    images: [...document.querySelectorAll("img")].map(image => image.naturalWidth),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  };
  document.body.innerHTML = "<pre id=found></pre>";
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>"""


def browse(page, profile, *flags):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs the browser chromium to open the page in")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        f"--user-data-dir={profile}",
        *flags,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_browser_plays_every_sound(page, tmp_path):
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text("utf-8").replace("</body>", PROBE + "</body>"), "utf-8")
    window = "--window-size=500,900"  # A phone's, as narrow as this browser's windows get.
    dom = browse(probed, tmp_path / "profile", window, "--virtual-time-budget=30000", "--dump-dom")
    found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)
    assert found, dom[-500:]
    text = found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    found = json.loads(text)
    durations = [duration for _, duration, _ in found["audio"]]
    assert [error for *_, error in found["audio"] if error] == []
    five = [SECONDS["bundled"], SECONDS["trained"]] * len(PROMPTS)
    clips = [CLIP / 16000] * 9
    assert durations == pytest.approx([*five, *clips], abs=0.01)
    assert len(found["images"]) == len(durations) + len(report.STAGES)
    assert min(found["images"]) > 100
    assert found["overflow"] <= 0
