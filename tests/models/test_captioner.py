import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maa_jax.model_folder import networks
from maa_jax.model_folder.torch_layout import to_torch
from maa_jax.models.captioner import (
    Captioner,
    CaptionerConfig,
    Memory,
    _upsampled,
    beam_search,
    nucleus,
    sample,
)
from maa_jax.models.cnn10 import Cnn10Config
from tests.conftest import random_network

PAD, BEGIN, END, WORDS = 0, 2, 3, (4, 5, 6)
CONFIG = CaptionerConfig(
    encoder=Cnn10Config(n_mels=8, channels=(4, 6)),
    vocab_size=7,
    embedding_size=8,
    hidden_size=10,
    max_length=5,
    bos_token_id=BEGIN,
    eos_token_id=END,
    suppress_tokens=(PAD, 1, BEGIN),
)
SOUNDS = 2


def random_params(seed):
    params = random_network(lambda rngs: Captioner(CONFIG, rngs=rngs), seed)
    params["classifier"]["kernel"] *= 6  # so that predictions differ clearly
    return params


@pytest.fixture(scope="module")
def build():
    graphdef = nnx.graphdef(networks.abstract(CONFIG))
    return functools.partial(nnx.merge, graphdef)


def make_memory(seed):
    rng = np.random.default_rng(seed)
    frames, keys = (rng.normal(size=(SOUNDS, 7, n)).astype("f") for n in (6, 10))
    return Memory(frames, keys)


@pytest.fixture(scope="module")
def likelihoods(build):
    """Returns a function: {caption or its beginning: log-probabilities [SOUNDS]} of a network."""
    captions = [[()]]
    for _ in range(CONFIG.max_length - 1):
        captions.append([(*c, w) for c in captions[-1] if END not in c for w in (END, *WORDS)])
    captions = [caption for some in captions[1:] for caption in some]
    rows = [[BEGIN, *c] + [PAD] * (CONFIG.max_length - 1 - len(c)) for c in captions]
    tokens = jnp.array(rows)

    @jax.jit
    def score(params, memory):
        everyone = lambda x: jnp.repeat(x, len(tokens), axis=0)
        rows = jnp.tile(tokens, (SOUNDS, 1))
        scores = build(params).log_likelihood(jax.tree.map(everyone, memory), rows)
        return scores.reshape(SOUNDS, -1).T

    def every(params, memory):
        return dict(zip(captions, np.asarray(score(params, memory)), strict=True))

    return every


@pytest.fixture(scope="module")
def search(build):
    @functools.partial(jax.jit, static_argnums=2)
    def run(params, memory, width):
        return beam_search(build(params), memory, width=width)

    return run


def plain_beam_search(scores, sound, width):
    """[(log-probability, caption)], best first, over a table of every caption's beginnings."""
    beams = [(0.0, ())]
    for _ in range(CONFIG.max_length - 1):
        longer = [beam for beam in beams if END in beam[1]]
        for _, caption in beams:
            if END not in caption:
                more = [(*caption, word) for word in (END, *WORDS)]
                longer += [(scores[c][sound], c) for c in more]
        beams = sorted(longer, reverse=True)[:width]
    return beams


def words_of(tokens):
    assert tokens[0] == BEGIN
    words = [int(t) for t in tokens[1:] if t != PAD]
    assert list(tokens[1 : 1 + len(words)]) == words  # padding is only at the end
    return tuple(words)


@pytest.mark.parametrize("width", [1, 3])
def test_beam_search_finds_what_a_plain_loop_finds(likelihoods, search, width):
    for seed in range(4):
        params, memory = random_params(seed), make_memory(seed)
        table = likelihoods(params, memory)
        tokens, scores = search(params, memory, width)
        for sound in range(SOUNDS):
            expected = plain_beam_search(table, sound, width)
            assert [words_of(row) for row in np.asarray(tokens[sound])] == [c for _, c in expected]
            np.testing.assert_allclose(scores[sound], [s for s, _ in expected], rtol=1e-4)


def test_a_beam_of_one_is_greedy_and_wider_ones_score_no_lower(likelihoods, search):
    for seed in range(4):
        params, memory = random_params(seed), make_memory(seed)
        table = likelihoods(params, memory)
        tokens, greedy = search(params, memory, 1)
        for sound in range(SOUNDS):
            caption = ()
            while END not in caption and len(caption) < CONFIG.max_length - 1:
                caption += (max((END, *WORDS), key=lambda w: table[(*caption, w)][sound]),)
            assert words_of(np.asarray(tokens[sound, 0])) == caption
        _, wide = search(params, memory, 3)
        assert np.all(wide[:, 0] >= greedy[:, 0] - 1e-5)
        best = np.max([s for c, s in table.items() if END in c or len(c) == 4], axis=0)
        assert np.all(wide[:, 0] <= best + 1e-4)


def test_the_nucleus_is_the_smallest_set_with_that_probability():
    probs = jnp.array([[0.15, 0.5, 0.05, 0.3], [0.25, 0.05, 0.6, 0.1]])
    kept = lambda p: np.asarray(nucleus(jnp.log(probs), p) > -1e9).tolist()
    assert kept(0.4) == [[False, True, False, False], [False, False, True, False]]
    assert kept(0.7) == [[False, True, False, True], [True, False, True, False]]
    assert kept(0.93) == [[True, True, False, True], [True, False, True, True]]
    assert np.all(kept(1.0))


def test_samples_stay_in_the_nucleus_and_depend_only_on_their_own_key(build, likelihoods):
    top_p, count = 0.6, 100
    params, memory = random_params(1), make_memory(1)
    many = lambda memory, n: jax.tree.map(lambda x: jnp.repeat(x, n, axis=0), memory)
    draw = jax.jit(lambda p, m, keys: sample(build(p), m, keys, top_p=top_p))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(2 * count))
    tokens = np.asarray(draw(params, many(memory, count), keys))
    table, seen = likelihoods(params, memory), [set(), set()]
    for i, row in enumerate(tokens):
        sound, words = i // count, words_of(row)
        assert END in words or len(words) == CONFIG.max_length - 1
        seen[sound].add(words)
        for n in range(len(words)):
            before = table[words[:n]][sound] if n else 0.0
            following = {w: np.exp(table[(*words[:n], w)][sound] - before) for w in (END, *WORDS)}
            better = sum(p for p in following.values() if p > following[words[n]] * 1.0001)
            assert better < top_p
    assert min(map(len, seen)) > 1

    order = np.random.default_rng(0).permutation(2 * count)
    moved = draw(params, jax.tree.map(lambda x: x[order], many(memory, count)), keys[order])
    np.testing.assert_array_equal(moved, tokens[order])


def test_a_step_is_pytorchs_gru_over_attended_frames(build):
    torch = pytest.importorskip("torch", reason="the parity check of the GRU needs torch")
    params, memory = random_params(0), make_memory(0)
    p = {k: torch.tensor(np.asarray(v)) for k, v in to_torch(params).items()}
    rng = np.random.default_rng(0)
    hidden, embedded = (rng.normal(size=(SOUNDS, n)).astype("f") for n in (10, 8))
    frames, keys, state, word = map(torch.tensor, (*memory, hidden, embedded))
    attention = torch.tanh(keys + (state @ p["query.weight"].T)[:, None]) @ p["score.weight"].T
    attention = attention.softmax(1)
    cell = torch.nn.GRUCell(8 + 6, 10)
    names = {"ih": "input_gates", "hh": "hidden_gates"}
    cell.load_state_dict(
        {f"{kind}_{k}": p[f"{v}.{kind}"] for k, v in names.items() for kind in ("weight", "bias")}
    )
    with torch.no_grad():
        expected = cell(torch.cat([word, (attention * frames).sum(1)], 1), state).numpy()
    step = jax.jit(lambda p, *args: build(p)._step(*args))
    new, weights = step(params, memory, hidden, embedded)
    np.testing.assert_allclose(new, expected, atol=1e-5)
    np.testing.assert_allclose(weights, attention[..., 0].numpy(), atol=1e-5)


def test_words_are_predicted_at_every_position(build):
    tokens = jnp.array([[BEGIN, 4, 5, END, PAD], [BEGIN, 6, END, PAD, PAD]])
    wav = np.random.default_rng(0).normal(0, 0.1, (2, 4000)).astype("f")
    forward = jax.jit(lambda p: (m := build(p).encode(wav), build(p)(m, tokens)))
    memory, (logits, attention) = forward(random_params(0))
    frames = CONFIG.encoder.frames(4000)
    assert memory.frames.shape == (2, frames, 6) and memory.keys.shape == (2, frames, 10)
    assert logits.shape == (2, 4, 7) and attention.shape == (2, 4, frames)
    np.testing.assert_allclose(attention.sum(-1), 1, rtol=1e-5)


def test_the_full_size():
    network = networks.abstract(CaptionerConfig())
    count = lambda x: sum(leaf.size for leaf in jax.tree.leaves(nnx.state(x, nnx.Param)))
    assert count(network.encoder) == 4_686_272
    attention, gru = 2 * 512 * 512 + 2 * 512, 3 * 512 * (1024 + 512 + 2)
    words = 30522 * (512 + 512 + 1)
    assert count(network) == 4_686_272 + attention + gru + words == 38_859_002


def test_an_encoder_of_twice_the_rate_gets_the_same_sound():
    t = np.arange(1600) / 16000
    wav = np.sin(2 * np.pi * 500 * t + 1)[None]
    np.testing.assert_allclose(_upsampled(wav, 2)[:, ::2], wav, atol=1e-5)
    fine = np.sin(2 * np.pi * 500 * np.arange(3200) / 32000 + 1)
    np.testing.assert_allclose(_upsampled(wav, 2)[0], fine, atol=1e-4)
    panns = Cnn10Config(sample_rate=32000, n_fft=1024, hop_length=320, fmax=14000.0)
    assert CaptionerConfig(encoder=panns).min_samples == CaptionerConfig().min_samples
    with pytest.raises(ValueError, match=r"encoder\.sample_rate=44100"):
        CaptionerConfig(encoder=Cnn10Config(sample_rate=44100))


def test_config_is_read_back_from_json():
    assert CaptionerConfig.from_hf(json.loads(json.dumps(CONFIG.to_hf()))) == CONFIG
    with pytest.raises(ValueError, match="model_type='bert'"):
        CaptionerConfig.from_hf({"model_type": "bert"})
    with pytest.raises(ValueError, match="max_length=2"):
        CaptionerConfig(max_length=2)
