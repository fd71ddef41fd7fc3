"""The captioner: recording to captions (paper Appendix E.2; Xu et al. 2020, "A CRNN-GRU based
reinforcement learning approach to audio captioning").

The encoder is a Cnn10, the decoder a single-layer GRU, which at every word attends to the frames
by additive attention (Bahdanau et al. 2015).
"""

import dataclasses
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from maa_jax import schema
from maa_jax.models import hf_config
from maa_jax.models.cnn10 import Cnn10, Cnn10Config
from maa_jax.models.layers import MASK_VALUE


@dataclasses.dataclass(frozen=True)
class CaptionerConfig:
    """Sizes and special ids of the captioner; the defaults are the full size.

    A caption is `bos_token_id`, its words, `eos_token_id`, and `pad_token_id` up to `max_length`
    ids in total. Ids in `suppress_tokens` are never written. Recordings are at `sample_rate` Hz;
    the encoder's rate may be a multiple of it, such as the 32 kHz of PANNs' released Cnn10.
    """

    encoder: Cnn10Config = dataclasses.field(default_factory=Cnn10Config)
    sample_rate: int = schema.field(16000, least=1000, most=768_000)
    vocab_size: int = schema.size(30522, most=2**24)
    embedding_size: int = schema.size(512)
    hidden_size: int = schema.size(512)
    dropout: float = schema.rate(0.5)
    max_length: int = schema.field(40, least=3, most=1000)
    pad_token_id: int = schema.field(0, least=0, most=2**24)
    bos_token_id: int = schema.field(101, least=0, most=2**24)
    eos_token_id: int = schema.field(102, least=0, most=2**24)
    suppress_tokens: tuple[int, ...] = schema.field((0, 100, 101, 103), least=0, most=2**24)

    def __post_init__(self):
        schema.check(self)
        ids = (self.pad_token_id, self.bos_token_id, self.eos_token_id, *self.suppress_tokens)
        if max(ids) >= self.vocab_size:
            raise ValueError(
                f"vocab_size={self.vocab_size} has no id {max(ids)}, which is one of pad_token_id, "
                "bos_token_id, eos_token_id and suppress_tokens"
            )
        if self.encoder.sample_rate % self.sample_rate:
            raise ValueError(
                f"encoder.sample_rate={self.encoder.sample_rate} is not a multiple of the "
                f"recordings' sample_rate={self.sample_rate}: make it one."
            )

    @property
    def min_samples(self) -> int:
        """Samples of the shortest recording that yields a frame."""
        return -(-self.encoder.min_samples * self.sample_rate // self.encoder.sample_rate)

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of config.json; the layout is this project's own."""
        return {
            "architectures": ["Captioner"],
            "model_type": "captioner",
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
            "encoder": self.encoder.to_hf(),
            "suppress_tokens": list(self.suppress_tokens),
        }

    @classmethod
    def from_hf(cls, d: dict[str, Any]) -> Self:
        """Reads config.json.

        Raises:
          ValueError: the file is not a captioner's.
        """
        fixed = {"architectures": ["Captioner"], "model_type": "captioner"}
        return hf_config.build(cls, d, fixed=fixed, parts={"encoder": Cnn10Config})


class Memory(NamedTuple):
    """The decoder's memory: frames [b, n, c], and their attention keys [b, n, hidden]."""

    frames: jax.Array
    keys: jax.Array


class Captioner(nnx.Module):
    """Encoder and decoder."""

    def __init__(self, config: CaptionerConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        width, hidden = config.encoder.channels[-1], config.hidden_size
        linear = lambda n, m, bias=True: nnx.Linear(n, m, use_bias=bias, dtype=dtype, rngs=rngs)
        self.encoder = Cnn10(config.encoder, dtype=dtype, rngs=rngs)
        self.embedding = nnx.Embed(config.vocab_size, config.embedding_size, dtype=dtype, rngs=rngs)
        self.query = linear(hidden, hidden, bias=False)
        self.key = linear(width, hidden)
        self.score = linear(hidden, 1, bias=False)
        self.input_gates = linear(config.embedding_size + width, 3 * hidden)
        self.hidden_gates = linear(hidden, 3 * hidden)
        self.classifier = linear(hidden, config.vocab_size)
        self.dropout = nnx.Dropout(config.dropout)

    def encode(
        self,
        wav: jax.Array,
        *,
        use_running_average: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> Memory:
        """Encodes recordings.

        Args:
          wav: waveforms [b, samples] in [-1, 1] at `config.sample_rate`.
          use_running_average: whether to normalise by the running statistics; if not, as in
            training, by the batch's, which also update the running ones.
          rngs: random streams; dropout and SpecAugment are active if given, with `dropout`.
        """
        wav = _upsampled(wav, self.config.encoder.sample_rate // self.config.sample_rate)
        frames = self.encoder.frames(wav, use_running_average=use_running_average, rngs=rngs)
        return Memory(frames, self.key(frames))

    def start(self, memory: Memory) -> jax.Array:
        """Returns the state [b, hidden] before the first word."""
        return jnp.zeros((len(memory.frames), self.config.hidden_size), jnp.float32)

    def _step(
        self, memory: Memory, hidden: jax.Array, embedded: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the state after a word [b, embedding_size], and attention [b, n] to frames."""
        energy = jnp.tanh(memory.keys + self.query(hidden)[:, None])
        attention = jax.nn.softmax(self.score(energy)[..., 0].astype(jnp.float32), axis=-1)
        context = jnp.einsum("bn,bnc->bc", attention.astype(memory.frames.dtype), memory.frames)
        # PyTorch's GRUCell: its gates are reset, update and new, in this order.
        inputs = self.input_gates(jnp.concatenate([embedded, context], axis=-1))
        reset, update, new = jnp.split(inputs.astype(jnp.float32), 3, axis=-1)
        states = self.hidden_gates(hidden).astype(jnp.float32)
        reset_h, update_h, new_h = jnp.split(states, 3, axis=-1)
        update = nnx.sigmoid(update + update_h)
        new = jnp.tanh(new + nnx.sigmoid(reset + reset_h) * new_h)
        return (1 - update) * new + update * hidden, attention

    def next(
        self, memory: Memory, hidden: jax.Array, tokens: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Reads the last word [b] and predicts the next one.

        Returns:
          The new state [b, hidden], and log-probabilities float32 [b, vocab_size]; those of
          `suppress_tokens` are far below any other.
        """
        hidden, _ = self._step(memory, hidden, self.embedding(tokens))
        return hidden, self._log_probs(self.classifier(hidden))

    def _log_probs(self, logits: jax.Array) -> jax.Array:
        suppressed = jnp.zeros(logits.shape[-1], bool)
        suppressed = suppressed.at[jnp.array(self.config.suppress_tokens, int)].set(True)
        return jax.nn.log_softmax(jnp.where(suppressed, MASK_VALUE, logits.astype(jnp.float32)))

    def __call__(
        self, memory: Memory, tokens: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Predicts each word of given captions from the words before it (teacher forcing).

        Args:
          memory: result of `encode`.
          tokens: captions [b, length].
          rngs: random streams; dropout is active if given, with the stream `dropout`.

        Returns:
          Logits float32 [b, length - 1, vocab_size] of `tokens[:, 1:]`, and attention
          [b, length - 1, n] to the frames.
        """
        embedded = self._drop(self.embedding(tokens[:, :-1]), rngs)

        def read(hidden, word):
            hidden, attention = self._step(memory, hidden, word)
            return hidden, (hidden, attention)

        _, out = lax.scan(read, self.start(memory), embedded.swapaxes(0, 1))
        states, attention = (x.swapaxes(0, 1) for x in out)
        return self.classifier(self._drop(states, rngs)).astype(jnp.float32), attention

    def _drop(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        return self.dropout(x, deterministic=rngs is None, rngs=rngs)

    def log_likelihood(self, memory: Memory, tokens: jax.Array) -> jax.Array:
        """Returns the log-probabilities [b] with which `sample` writes captions [b, length]."""
        logits, _ = self(memory, tokens)
        words = tokens[:, 1:]
        chosen = jnp.take_along_axis(self._log_probs(logits), words[..., None], axis=-1)[..., 0]
        return jnp.sum(jnp.where(words != self.config.pad_token_id, chosen, 0), axis=1)


def beam_search(network: Captioner, memory: Memory, *, width: int) -> tuple[jax.Array, jax.Array]:
    """Returns the likeliest captions that a beam of `width` finds; 1 is greedy. Pure.

    Args:
      network: the captioner.
      memory: result of `network.encode` for b recordings.
      width: captions kept at every word.

    Returns:
      Ids int32 [b, width, max_length] and log-probabilities float32 [b, width] of the captions,
      each recording's likeliest first.
    """
    config, size, vocab = network.config, len(memory.frames), network.config.vocab_size
    memory = jax.tree.map(lambda x: jnp.repeat(x, width, axis=0), memory)
    ids = jnp.arange(vocab)
    padding = jnp.where(ids == config.pad_token_id, 0, MASK_VALUE)  # only padding follows an end

    def extend(carry, position):
        tokens, scores, hidden = carry
        last = tokens[:, :, position - 1]
        hidden, log_probs = network.next(memory, hidden, last.reshape(-1))
        log_probs = log_probs.reshape(size, width, vocab)
        log_probs = jnp.where(_ended(config, last)[..., None], padding, log_probs)
        total = (scores[..., None] + log_probs).reshape(size, width * vocab)
        scores, best = lax.top_k(total, width)
        beam = best // vocab
        tokens = jnp.take_along_axis(tokens, beam[..., None], axis=1)
        tokens = tokens.at[:, :, position].set(best % vocab)
        hidden = jnp.take_along_axis(hidden.reshape(size, width, -1), beam[..., None], axis=1)
        return (tokens, scores, hidden.reshape(size * width, -1)), None

    # All beams are equal at first: only one may be extended.
    scores = jnp.broadcast_to(jnp.where(jnp.arange(width) == 0, 0.0, MASK_VALUE), (size, width))
    carry = (_begin(config, (size, width)), scores, network.start(memory))
    (tokens, scores, _), _ = lax.scan(extend, carry, jnp.arange(1, config.max_length))
    return tokens, scores


def sample(
    network: Captioner,
    memory: Memory,
    keys: jax.Array,
    *,
    top_p: float = 1.0,
    temperature: float = 1.0,
) -> jax.Array:
    """Draws captions by nucleus sampling (Holtzman et al. 2020). Pure.

    Args:
      network: the captioner.
      memory: result of `network.encode` for b recordings.
      keys: PRNG keys [b]; a caption depends only on its own.
      top_p: total probability of the smallest set of words to draw from.
      temperature: divisor of the log-probabilities, applied first.

    Returns:
      Ids int32 [b, max_length].
    """
    config = network.config

    def extend(carry, position):
        tokens, hidden = carry
        last = tokens[:, position - 1]
        hidden, log_probs = network.next(memory, hidden, last)
        logits = nucleus(log_probs / temperature, top_p)
        drawn = jax.vmap(jax.random.categorical)(
            jax.vmap(jax.random.fold_in, (0, None))(keys, position), logits
        )
        drawn = jnp.where(_ended(config, last), config.pad_token_id, drawn)
        return (tokens.at[:, position].set(drawn), hidden), None

    carry = (_begin(config, (len(memory.frames),)), network.start(memory))
    (tokens, _), _ = lax.scan(extend, carry, jnp.arange(1, config.max_length))
    return tokens


def nucleus(logits: jax.Array, top_p: float) -> jax.Array:
    """Returns logits [..., n] with all but the smallest set of probability `top_p` ruled out."""
    if top_p >= 1:
        return logits
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probs = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs
    least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= least, logits, MASK_VALUE)


def _begin(config: CaptionerConfig, shape: tuple[int, ...]) -> jax.Array:
    tokens = jnp.full((*shape, config.max_length), config.pad_token_id, jnp.int32)
    return tokens.at[..., 0].set(config.bos_token_id)


def _ended(config: CaptionerConfig, last: jax.Array) -> jax.Array:
    return (last == config.eos_token_id) | (last == config.pad_token_id)


def _upsampled(wav: jax.Array, factor: int) -> jax.Array:
    """Resamples to [b, factor * samples], band-limited."""
    if factor == 1:
        return wav
    size = wav.shape[1] * factor
    return factor * jnp.fft.irfft(jnp.fft.rfft(wav.astype(jnp.float32)), size)
