"""VGGish (Hershey et al. 2017): an embedding of each 0.96 s, for the Frechet audio distance.

Front end and layers are those of harritaylor/torchvggish (vggish_params.py, mel_features.py,
vggish.py), without its principal components.
"""

import dataclasses
import functools
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maa_jax import schema
from maa_jax.models import hf_config
from maa_jax.models.layers import Conv, Linear

SAMPLE_RATE = 16_000
_WINDOW, _HOP, _N_FFT = 400, 160, 512  # samples: 25 ms, 10 ms, and the transform
_N_MELS, _FMIN, _FMAX = 64, 125.0, 7500.0  # edges in Hz
_LOG_OFFSET = 0.01
EXAMPLE_FRAMES = 96
MIN_SAMPLES = (EXAMPLE_FRAMES - 1) * _HOP + _WINDOW
# Convolutions before each halving, as multiples of the first one's channels.
_LEVELS = ((1,), (2,), (4, 4), (8, 8))


@dataclasses.dataclass(frozen=True)
class VGGishConfig:
    """Widths; the defaults are those of the published network, whose front end is fixed.

    Attributes:
      width: channels of the first convolution; the last has eight times as many.
      hidden_size: width of the two layers before the last.
      embedding_size: width of the embedding.
      published: name of the released weights (see `maa_jax.convert.classifiers`); None for others.
    """

    sample_rate: ClassVar[int] = SAMPLE_RATE
    labels: ClassVar[None] = None

    width: int = schema.size(64, most=1024)
    hidden_size: int = schema.size(4096)
    embedding_size: int = schema.size(128)
    published: str | None = None

    def __post_init__(self):
        schema.check(self)

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of config.json; the layout is this project's own."""
        return {
            "architectures": ["VGGish"],
            "model_type": "vggish",
            **{k: v for k, v in dataclasses.asdict(self).items() if v is not None},
        }

    @classmethod
    def from_hf(cls, d: dict[str, Any]) -> Self:
        """Reads config.json.

        Raises:
          ValueError: the file belongs to another network, or settings are invalid or missing.
        """
        fixed = {"architectures": ["VGGish"], "model_type": "vggish"}
        return hf_config.build(cls, d, fixed=fixed)


def vggish_examples(wav: jax.Array) -> jax.Array:
    """Returns log mels in examples of 0.96 s, [b, examples, 96, 64], float32.

    Frames are not centred, and what is left of the last example is dropped.

    Args:
      wav: waveforms [b, samples] in [-1, 1] at 16 kHz.

    Raises:
      ValueError: the waveform is shorter than an example.
    """
    if wav.shape[1] < MIN_SAMPLES:
        raise ValueError(
            f"a clip of {wav.shape[1]} samples is too short for VGGish: pad it to {MIN_SAMPLES}"
            f" samples or more, at {SAMPLE_RATE} Hz"
        )
    count = (1 + (wav.shape[1] - _WINDOW) // _HOP) // EXAMPLE_FRAMES
    starts = np.arange(count * EXAMPLE_FRAMES)[:, None] * _HOP
    window = np.hanning(_WINDOW + 1)[:-1].astype(np.float32)
    frames = wav.astype(jnp.float32)[:, starts + np.arange(_WINDOW)] * window
    magnitude = jnp.abs(jnp.fft.rfft(frames, _N_FFT))
    mel = jnp.matmul(magnitude, _filters(), precision=jax.lax.Precision.HIGHEST)
    return jnp.log(mel + _LOG_OFFSET).reshape(len(wav), count, EXAMPLE_FRAMES, _N_MELS)


@functools.cache
def _filters() -> np.ndarray:
    """Returns HTK's mel filters, float32 [257, 64], straight over mels and not over Hz."""
    mels = lambda hz: 1127 * np.log1p(hz / 700)
    edges = np.linspace(mels(_FMIN), mels(_FMAX), _N_MELS + 2)
    bins = mels(np.fft.rfftfreq(_N_FFT, 1 / SAMPLE_RATE))[:, None]
    rising = (bins - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - bins) / np.diff(edges)[1:]
    filters = np.maximum(0, np.minimum(rising, falling))
    filters[0] = 0
    return filters.astype(np.float32)


class VGGish(nnx.Module):
    """Waveform to an embedding of each 0.96 s."""

    def __init__(self, config: VGGishConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        size, place, layers = 1, 0, {}
        for level in _LEVELS:
            for multiple in level:
                channels = multiple * config.width
                conv = Conv(size, channels, (3, 3), padding=1, dtype=dtype, rngs=rngs)
                layers[str(place)] = conv
                size, place = channels, place + 2  # a ReLU follows
            place += 1  # a max pooling
        self.features = nnx.Dict(layers)
        halvings = 2 ** len(_LEVELS)
        flat = EXAMPLE_FRAMES // halvings * (_N_MELS // halvings) * size
        sizes = (flat, config.hidden_size, config.hidden_size, config.embedding_size)
        self.embeddings = nnx.Dict(
            {str(2 * i): Linear(sizes[i], sizes[i + 1], dtype=dtype, rngs=rngs) for i in range(3)}
        )

    def __call__(self, wav: jax.Array) -> dict[str, jax.Array]:
        """Embeds waveforms [b, samples]; see `vggish_examples`.

        Returns:
          `embedding_linear`, before the last ReLU, as haoheliu/audioldm_eval takes it, and
          `embedding`, both [b, examples, embedding_size], float32.
        """
        examples = vggish_examples(wav)
        found = self.embed(examples.reshape(-1, *examples.shape[2:]))
        return {k: v.reshape(*examples.shape[:2], -1) for k, v in found.items()}

    def embed(self, examples: jax.Array) -> dict[str, jax.Array]:
        """Embeds examples [n, 96, 64]; returns as `__call__` does, [n, embedding_size] each."""
        x, place = examples[..., None].astype(self.dtype), 0
        for level in _LEVELS:
            for _ in level:
                x = nnx.relu(self.features[str(place)](x))
                place += 2
            x = nnx.max_pool(x, (2, 2), strides=(2, 2))
            place += 1
        x = x.reshape(len(x), -1)  # frames, mels, channels, as TensorFlow's original has them
        for name in "02":
            x = nnx.relu(self.embeddings[name](x))
        x = self.embeddings["4"](x).astype(jnp.float32)
        return {"embedding_linear": x, "embedding": nnx.relu(x)}
