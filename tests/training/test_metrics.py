import pathlib

import numpy as np
import pytest
from tensorboard import context
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.util import tensor_util

from maa_jax.training.metrics import Metrics

RATE = 16_000
SUMMARY = {  # as a stage gives them: a sound and a picture of it have one name
    "image/sample": np.linspace(0, 1, 2 * 8 * 6, dtype="f").reshape(2, 8, 6, 1),
    "audio/sample": np.stack([np.full((400, 1), 0.25, "f"), np.full((400, 1), -2.0, "f")]),
}


@pytest.fixture
def workdir(tmp_path) -> pathlib.Path:
    metrics = Metrics(str(tmp_path), first_step=0, total_steps=4, batch_size=2)
    for step in (1, 2):
        metrics.add({"loss": np.float32(step)})
    metrics.write(2, learning_rate=0.5)
    metrics.write_summary(2, SUMMARY, RATE)
    metrics.write_text(0, "config", '{\n  "seed": 0\n}')
    metrics.close()
    return tmp_path


def shown(workdir: pathlib.Path, plugin: str) -> dict[str, int]:
    """Returns {tag: number of images or sounds} from TensorBoard's data plugin."""
    multiplexer = EventMultiplexer(tensor_size_guidance={"images": 10, "audio": 10})
    multiplexer.AddRunsFromDirectory(str(workdir)).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(workdir))
    found = provider.read_blob_sequences(
        context.RequestContext(), experiment_id="", plugin_name=plugin, downsample=10
    )
    # A sequence holds its size and labels before the blobs themselves.
    return {tag: len(series) for run in found.values() for tag, series in run.items()}


def test_images_and_sounds_have_tags_of_their_own(workdir):
    events = EventAccumulator(str(workdir)).Reload()
    assert sorted(events.Tags()["images"]) == ["image/sample/0", "image/sample/1"]
    assert sorted(events.Tags()["audio"]) == ["audio/sample/0", "audio/sample/1"]
    (image,) = events.Images("image/sample/0")
    assert (image.step, image.height, image.width) == (2, 8, 6)
    assert image.encoded_image_string.startswith(b"\x89PNG")
    (sound,) = events.Audio("audio/sample/0")
    assert (sound.sample_rate, sound.length_frames) == (RATE, 400)
    assert sound.encoded_audio_string.startswith(b"RIFF")
    assert shown(workdir, "images") == {"image/sample/0": 1, "image/sample/1": 1}
    assert shown(workdir, "audio") == {"audio/sample/0": 1, "audio/sample/1": 1}


def test_scalars_are_means_over_the_steps_and_the_config_is_shown(workdir):
    events = EventAccumulator(str(workdir)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(2, 1.5)]
    assert [e.value for e in events.Scalars("train/learning_rate")] == [0.5]
    assert events.Scalars("speed/samples_per_second")[0].value > 0
    (tag,) = [tag for tag in events.Tags()["tensors"] if tag.startswith("config")]
    (text,) = tensor_util.make_ndarray(events.Tensors(tag)[0].tensor_proto)
    assert '"seed": 0' in text.decode()


def test_a_resumed_run_hides_what_was_written_after_its_checkpoint(workdir):
    metrics = Metrics(str(workdir), first_step=1, total_steps=4, batch_size=2)
    metrics.add({"loss": np.float32(7)})
    metrics.write(2)
    metrics.close()
    events = EventAccumulator(str(workdir)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(2, 7.0)]
