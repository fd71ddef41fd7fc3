r"""Rate and memory of the networks behind scores, at full size.

    python -m benchmarks.features [--clips=1000] [--seconds=10] [--networks=melception,...]

Writes wav files of noise at 16 kHz into a temporary folder, and computes the features of each
network from it as `maa_jax.evaluate` does, with random weights, in a process of its own. Prints a
table of clips per second and the process's peak memory: after a tenth of the clips and after all,
so that it shows whether memory grows with their number.
"""

import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import tokenizers
from absl import app, flags
from flax import nnx

from maa_jax.audio import io
from maa_jax.encoders.batching import Batches
from maa_jax.encoders.clap import ClapScore
from maa_jax.encoders.classifiers import PART, SoundClassifier
from maa_jax.evaluators import features, sources
from maa_jax.model_folder import networks
from maa_jax.models.bert import Bert, BertConfig, RobertaConfig
from maa_jax.models.clap import LaionClap, LaionClapConfig, Projection, ProjectionConfig
from maa_jax.models.cnn14 import Cnn14, Cnn14Config
from maa_jax.models.htsat import HtsatConfig
from maa_jax.models.inception import Melception, MelceptionConfig
from maa_jax.models.vggish import VGGish, VGGishConfig
from maa_jax.text.tokenizer import build_tokenizer

CLASSIFIERS = {
    "melception": (Melception, MelceptionConfig(), ("embedding", "logits")),
    "cnn14_16k": (Cnn14, Cnn14Config(), ("embedding", "logits")),
    "cnn14_32k": (Cnn14, Cnn14Config.panns_32k(), ("embedding", "logits")),
    "vggish": (VGGish, VGGishConfig(), ("embedding_linear",)),
}
CLAPS = ("clap-laion", "clap-ms")

_CLIPS = flags.DEFINE_integer("clips", 1000, "Number of clips.", lower_bound=10)
_SECONDS = flags.DEFINE_float("seconds", 10.0, "Length of each clip in seconds.")
_NETWORKS = flags.DEFINE_list("networks", [*CLASSIFIERS, *CLAPS], "Which networks.")
_BATCH = flags.DEFINE_integer("batch_size", 8, "Clips at a time.", lower_bound=1)
_SOUNDS = flags.DEFINE_string("sounds", None, "Set in the processes of single networks.")


def open_network(name: str, folder: pathlib.Path) -> features.Network:
    """Writes a network with random weights, and opens it as evaluation does."""
    batches = Batches(_BATCH.value)
    if name in CLASSIFIERS:
        kind, config, keys = CLASSIFIERS[name]
        _save(folder, PART, kind, config)
        return features.ClassifierAudio(SoundClassifier(folder, batches), keys)
    if name == "clap-laion":
        config = LaionClapConfig(RobertaConfig(vocab_size=64, num_hidden_layers=1), HtsatConfig())
        _save(folder, "clap", LaionClap, config)
        words = tokenizers.models.WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>")
        tokenizers.Tokenizer(words).save(str(folder / "clap" / "tokenizer.json"))
        (folder / "clap" / "tokenizer_config.json").write_text('{"pad_token": "<pad>"}')
        front = '{"feature_size": 64, "sampling_rate": 48000, "hop_length": 480,'
        front += ' "max_length_s": 10, "fft_window_size": 1024, "frequency_max": 14000,'
        front += ' "frequency_min": 50, "truncation": "rand_trunc"}'
        (folder / "clap" / "preprocessor_config.json").write_text(front)
    else:
        tokenizer = build_tokenizer(["noise"], folder / "tokenizer", 64)
        text = BertConfig(tokenizer.vocab_size, 16, 1, 2, 32)  # only the sounds' side is measured
        _save(folder, "text_encoder", Bert, text)
        _save(folder, "text_projection", Projection, ProjectionConfig(16, 1024))
        _save(folder, "audio_encoder", Cnn14, Cnn14Config.clap_2022())
        _save(folder, "audio_projection", Projection, ProjectionConfig(2048, 1024))
    return features.ClapAudio(ClapScore(folder, batch_size=_BATCH.value))


def _save(folder: pathlib.Path, part: str, kind: type, config: object) -> None:
    params = nnx.to_pure_dict(nnx.state(kind(config, rngs=nnx.Rngs(0))))
    networks.save_network(folder, part, config, params)


def measure(name: str) -> None:
    """Prints a row of the table."""
    sounds = sources.folder(_SOUNDS.value, batch_size=_BATCH.value)
    with tempfile.TemporaryDirectory() as folder:
        network = open_network(name, pathlib.Path(folder))
        done, begin, memory = 0, 0.0, {}

        class Watched:
            """The network, with the memory after each batch."""

            digest = network.digest

            def __call__(self, wavs: np.ndarray, sample_rate: int) -> np.ndarray:
                nonlocal done, begin
                found = network(wavs, sample_rate)
                done += len(wavs)
                begin = begin or time.perf_counter()  # after the first batch, which compiles
                memory[done] = peak_mib()
                return found

        (found,) = sounds.features([Watched()])
        seconds = time.perf_counter() - begin
    assert len(found) == len(sounds)
    rate = (len(sounds) - _BATCH.value) / seconds
    tenth = next(count for count in memory if count >= len(sounds) / 10)
    print(f"| {name} | {rate:.1f} | {memory[tenth]:.0f} MiB | {memory[done]:.0f} MiB |", flush=True)


def peak_mib() -> float:
    """Returns the peak resident memory of the process so far in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    if _SOUNDS.value:
        measure(*_NETWORKS.value)
        return
    unknown = set(_NETWORKS.value) - {*CLASSIFIERS, *CLAPS}
    if unknown:
        raise app.UsageError(f"--networks={','.join(unknown)}: give {', '.join(CLASSIFIERS)}")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as sounds:
        for i in range(_CLIPS.value):
            wav = rng.normal(0, 0.1, round(_SECONDS.value * io.SAMPLE_RATE))
            io.write_wav(pathlib.Path(sounds, f"{i:05}.wav"), wav)
        what = f"{_CLIPS.value} clips of {_SECONDS.value:g} s, {os.cpu_count()} cores"
        print(f"{what}:\n\n| network | clips/s | memory after a tenth | at the end |")
        print("|---|---|---|---|", flush=True)
        for name in _NETWORKS.value:
            flags_ = [f"--{f.name}={f.value}" for f in (_CLIPS, _SECONDS, _BATCH)]
            command = [sys.executable, "-m", "benchmarks.features", *flags_]
            subprocess.run([*command, f"--networks={name}", f"--sounds={sounds}"], check=True)


if __name__ == "__main__":
    app.run(main)
