import numpy as np
import pytest

from maa_jax.enhancement.captioning import Captioning
from maa_jax.files import FolderError
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import save_index
from maa_jax.models.captioner import Captioner, CaptionerConfig
from maa_jax.models.cnn10 import Cnn10Config
from maa_jax.text.tokenizer import build_tokenizer
from tests.conftest import CAPTIONS, random_network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioner")
    tokenizer = build_tokenizer(CAPTIONS, folder / "tokenizer", 100)
    begin, end = tokenizer([""])[0, :2].tolist()
    config = CaptionerConfig(
        encoder=Cnn10Config(n_mels=8, channels=(4, 6)),
        vocab_size=tokenizer.vocab_size,
        embedding_size=8,
        hidden_size=10,
        max_length=6,
        bos_token_id=begin,
        eos_token_id=end,
        suppress_tokens=tuple(i for i in tokenizer.special_ids if i != end),
    )
    params = random_network(lambda rngs: Captioner(config, rngs=rngs), 0)
    params["classifier"]["kernel"] *= 4
    networks.save_network(folder, "captioner", config, params)
    save_index(folder)
    return folder


def test_captions_depend_on_the_recording_and_not_on_its_batch(folder):
    expert = Captioning(folder, num_beams=2, num_samples=3)
    assert expert.name == "captioning"
    audio = np.random.default_rng(0).normal(0, 0.2, (3, 3000)).astype("f")
    captions = expert.propose(audio, [[], ["dog"], []])
    assert len(captions) == 3 and all(2 <= len(some) <= 5 for some in captions)
    for some in captions:
        assert len(set(some)) == len(some)
        assert all(c and "[" not in c for c in some)
    assert expert.propose(audio[::-1], [[]] * 3) == captions[::-1]
    other = Captioning(folder, num_beams=2, num_samples=3, seed=1).propose(audio, [[]] * 3)
    assert [c[0] for c in other] == [c[0] for c in captions]  # that of beam search
    assert other != captions


def test_a_recording_too_short_is_padded(folder):
    expert = Captioning(folder, num_beams=1, num_samples=0)
    assert [len(c) for c in expert.propose(np.zeros((1, 5), "f"), [[]])] == [1]


def test_requests_that_cannot_be_met_are_refused(folder, tiny_model):
    with pytest.raises(ValueError, match="num_beams=0, num_samples=0"):
        Captioning(folder, num_beams=0, num_samples=0)
    with pytest.raises(ValueError, match="top_p=0"):
        Captioning(folder, top_p=0)
    with pytest.raises(FolderError, match=r"captioner/config\.json"):
        Captioning(tiny_model)
