import json
import shutil
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest
from flax import nnx

from maa_jax.encoders.text import TextConditioner, find
from maa_jax.files import FolderError
from maa_jax.model_folder import hub, networks
from maa_jax.models.bert import Bert, BertConfig
from maa_jax.models.clap import Projection, ProjectionConfig
from maa_jax.models.clip import ClipConfig, ClipModel, ClipVisionConfig
from maa_jax.text.tokenizer import Tokenizer, build_tokenizer, tokenizer_from_captions
from tests.conftest import random_network
from tests.tiny_encoders import write_encoder

CAPTIONS = ["A crow caws, twice", "a Dog barks at 3 o'clock", "a bell"]


def write_model(folder, vocab_size=100, max_position_embeddings=77):
    build_tokenizer(CAPTIONS, folder / "tokenizer", 100)
    bert = BertConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=max_position_embeddings,
    )
    head = ProjectionConfig(16, 24)
    for name, config, network in (
        ("text_encoder", bert, Bert(bert, rngs=nnx.Rngs(0))),
        ("text_projection", head, Projection(head, rngs=nnx.Rngs(1))),
    ):
        networks.save_network(folder, name, config, nnx.to_pure_dict(nnx.state(network)))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


def test_prompts_become_77_ids(model):
    tokenizer = Tokenizer.from_folder(model / "tokenizer")
    ids = tokenizer(["A CROW barks", "", "Zebra"])
    assert ids.shape == (3, 77) and ids.dtype == np.int32
    words = (model / "tokenizer" / "vocab.txt").read_text().splitlines()
    read = [[words[i] for i in row if words[i] != "[PAD]"] for row in ids]
    assert read[0] == ["[CLS]", "a", "crow", "barks", "[SEP]"]
    assert read[1] == ["[CLS]", "[SEP]"]
    assert read[2] == ["[CLS]", "z", "##e", "##b", "##r", "##a", "[SEP]"]


def test_ids_become_text_again():
    texts = ["a crow caws, twice", "a hi-hat", "zebra", ""]
    tokenizer = tokenizer_from_captions(texts[:2], 90)
    assert tokenizer.decode(tokenizer(texts)) == texts
    assert set(tokenizer(["", ""])[0]) < set(tokenizer.special_ids)


def test_the_words_cut_from_a_long_prompt_are_shown(model):
    tokenizer = Tokenizer.from_folder(model / "tokenizer")
    with pytest.warns(UserWarning, match=r"lost: 'dog barks'"):
        ids = tokenizer(["crow " * 75 + "dog barks"])
    np.testing.assert_array_equal(ids[0, -1], tokenizer(["crow"])[0, 2])  # still ends in [SEP]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer(["crow " * 75])


def test_a_folder_opens_with_transformers(model):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(model / "tokenizer"))
    prompts = ["A crow caws at the bell", "", "zebra's été 33"]
    ids = theirs(prompts, padding="max_length", max_length=77, truncation=True)["input_ids"]
    np.testing.assert_array_equal(Tokenizer.from_folder(model / "tokenizer")(prompts), ids)


def test_a_vocabulary_alone_will_do(model, tmp_path):
    (tmp_path / "vocab.txt").write_text((model / "tokenizer" / "vocab.txt").read_text())
    alone, whole = Tokenizer.from_folder(tmp_path), Tokenizer.from_folder(model / "tokenizer")
    np.testing.assert_array_equal(alone(CAPTIONS), whole(CAPTIONS))


def test_a_tokenizer_is_the_same_each_time_and_keeps_its_size(tmp_path):
    one = build_tokenizer(CAPTIONS, tmp_path / "a", 98)
    build_tokenizer(CAPTIONS[::-1], tmp_path / "b", 98)
    files = [[(tmp_path / d / f).read_bytes() for f in ("tokenizer.json", "vocab.txt")]
             for d in "ab"]  # fmt: skip
    assert files[0] == files[1]
    assert one.vocab_size <= 98
    spelt = build_tokenizer(CAPTIONS, tmp_path / "c", 10)  # too small for any word
    assert np.all(spelt(CAPTIONS)[:, :4] > 0)


def test_no_captions_make_no_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="no words"):
        build_tokenizer(["", " "], tmp_path / "t", 100)


def test_a_missing_tokenizer_is_named_with_its_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json and vocab\.txt .* bert-base"):
        Tokenizer.from_folder(tmp_path)


def test_a_broken_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json is broken"):
        Tokenizer.from_folder(tmp_path)


def test_another_models_tokenizer_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("<s>\n</s>\na\n")
    with pytest.raises(ValueError, match=r"\[PAD\]"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"]["vocab"].update(crow=2**31), r"text encoder \d+"),
        (lambda c: c["post_processor"]["special_tokens"]["[CLS]"].update(ids=[999]), "999"),
        (lambda c: c["post_processor"].update(special_tokens={}), "tokenizer fails"),
        (lambda c: c["model"].update(unk_token="nothing"), "tokenizer fails"),
        (lambda c: c["model"].update(vocab={}), "pad_token|tokenizer fails"),
        (lambda c: c.update(normalizer=3), "tokenizer fails"),
        (
            lambda c: c.update(
                normalizer={"type": "Replace", "pattern": {"Regex": "("}, "content": ""}
            ),
            "tokenizer fails",
        ),
    ],
)
def test_a_tokenizer_whose_tables_contradict_each_other_is_refused(
    model, tmp_path, change, message
):
    model = shutil.copytree(model, tmp_path / "model")
    path = model / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(FolderError, match=message):
        TextConditioner.from_folder(model)


@pytest.mark.parametrize("pad", [3, [], {}, {"content": 3}, "nothing"])
def test_a_padding_token_that_is_no_token_is_refused(model, tmp_path, pad):
    folder = shutil.copytree(model / "tokenizer", tmp_path / "tokenizer")
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": pad}))
    if pad == {}:  # as absent
        assert Tokenizer.from_folder(folder).pad_id == 0
    else:
        with pytest.raises(FolderError, match=r"tokenizer.*pad_token"):
            Tokenizer.from_folder(folder)


def test_a_vocabulary_with_a_word_twice_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\na\n")
    with pytest.raises(FolderError, match=r"vocab\.txt: 1 words stand in it twice"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(FolderError, match=r"vocab\.txt: .*decode"):
        Tokenizer.from_folder(tmp_path)


def test_an_encoder_with_too_few_positions_is_refused(tmp_path):
    with pytest.raises(FolderError, match="positions for 16 tokens"):
        TextConditioner.from_folder(write_model(tmp_path, max_position_embeddings=16))


def test_a_projection_of_another_encoder_is_refused(model, tmp_path):
    model = shutil.copytree(model, tmp_path / "model")
    head = ProjectionConfig(8, 24)
    weights = nnx.to_pure_dict(nnx.state(Projection(head, rngs=nnx.Rngs(1))))
    networks.save_network(model, "text_projection", head, weights)
    with pytest.raises(FolderError, match=r"in_size=8, but text_encoder: hidden_size=16"):
        TextConditioner.from_folder(model)


def test_a_string_is_not_taken_for_a_list_of_letters(model):
    with pytest.raises(TypeError, match="give a list"):
        Tokenizer.from_folder(model / "tokenizer")("a crow")


def test_contexts_depend_on_the_prompt_and_not_on_the_batch(model):
    conditioner = TextConditioner.from_folder(model)
    encode = jax.jit(conditioner.encode)
    context = encode(conditioner.params, conditioner.prepare(["a crow", "a bell", ""]))
    assert context.shape == (3, 77, conditioner.width) == (3, 77, 24)
    alone = encode(conditioner.params, conditioner.prepare(["a bell"]))
    np.testing.assert_allclose(alone[0], context[1], atol=1e-5)
    assert np.abs(context[0] - context[2]).max() > 1e-2


def test_a_tokenizer_too_large_for_its_network_is_refused(tmp_path):
    with pytest.raises(ValueError, match="text encoder 50"):
        TextConditioner.from_folder(write_model(tmp_path, vocab_size=50))


PROMPTS = ["A crow caws, twice!", "", "the dog's  bark\nagain", "rain falls on a tin roof " * 20]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    return {kind: write_encoder(kind, folder / kind) for kind in ("bert", "t5", "clip")}


@pytest.mark.parametrize("kind", ["bert", "t5", "clip"])
@pytest.mark.filterwarnings("ignore:a sentence of")
def test_each_kind_gives_what_transformers_gives(encoders, tmp_path, kind):
    conditioner = TextConditioner.from_folder(encoders[kind])
    assert (conditioner.kind, conditioner.width) == (kind, 16)
    tokens = conditioner.prepare(PROMPTS)
    context = jax.jit(conditioner.encode)(conditioner.params, tokens)
    assert tokens.shape == (4, 77) and context.shape == (4, 77, 16)

    conditioner.save(tmp_path)  # as a part of a whole model
    copy = TextConditioner.from_folder(tmp_path)
    np.testing.assert_array_equal(copy.prepare(PROMPTS), tokens)
    jax.tree.map(np.testing.assert_array_equal, copy.params, conditioner.params)
    assert copy.kind == kind

    torch = pytest.importorskip("torch", reason="parity needs torch and transformers")
    transformers = pytest.importorskip("transformers")
    settings = dict(padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    classes = {"bert": "BertModel", "t5": "T5EncoderModel", "clip": "CLIPTextModel"}
    for folder, parts in ((encoders[kind], ("", "")), (tmp_path, ("tokenizer", "text_encoder"))):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, subfolder=parts[0])
        theirs = tokenizer(PROMPTS, **settings)
        np.testing.assert_array_equal(tokens, theirs["input_ids"])
        more = {"add_pooling_layer": False} if kind == "bert" else {}
        network = getattr(transformers, classes[kind])
        network = network.from_pretrained(folder, subfolder=parts[1], **more).eval()
        mask = None if kind == "clip" else theirs["attention_mask"]
        with torch.no_grad():
            hidden = network(theirs["input_ids"], attention_mask=mask).last_hidden_state.numpy()
        np.testing.assert_allclose(context, hidden, atol=1e-4 * np.abs(hidden).max())


def test_the_clip_kind_reads_the_text_tower_of_a_whole_clip(encoders, tmp_path):
    shutil.copytree(encoders["clip"], tmp_path, dirs_exist_ok=True)
    tower = networks.load_config(tmp_path, ".")
    config = ClipConfig(tower, ClipVisionConfig(16, 32, 1, 2, image_size=8, patch_size=4), 8)
    params = random_network(lambda rngs: ClipModel(config, rngs=rngs), 0)
    text = networks.load_network(tmp_path, ".")[1]["text_model"]
    networks.save_network(tmp_path / "new", "clip", config, params | {"text_model": text})
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tmp_path / "new" / "clip" / name, tmp_path / name)
    whole, alone = (TextConditioner.from_folder(f) for f in (tmp_path, encoders["clip"]))
    jax.tree.map(np.testing.assert_array_equal, whole.params, alone.params)


def test_a_clap_is_a_bert_with_a_projection(model):
    assert TextConditioner.from_folder(model).kind == "clap"


def test_a_network_that_is_no_text_encoder_is_refused(model, tmp_path):
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "text_encoder")
    shutil.copytree(tmp_path / "text_projection", tmp_path / "text_encoder")
    with pytest.raises(FolderError, match="'Projection' is not a text encoder; known: Bert"):
        TextConditioner.from_folder(tmp_path)


def test_text_encoders_are_found_by_name(encoders, tmp_path, monkeypatch):
    assert find(encoders["t5"]) == encoders["t5"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FolderError, match=r"'clipp' is not a folder \(did you mean 'clip'\?"):
        find("clipp")
    asked = []
    monkeypatch.setattr(hub, "fetch", lambda *args: asked.append(args))
    find("t5")
    assert asked == [("google-t5/t5-large", ("tokenizer.json",))]


def test_a_tokenizer_without_its_padding_is_refused(encoders, tmp_path):
    shutil.copy(encoders["clip"] / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "<pad>"}')
    with pytest.raises(ValueError, match="lacks its pad_token='<pad>'"):
        Tokenizer.from_folder(tmp_path)


def test_neither_torch_nor_tensorflow_is_imported(model):
    code = (
        "import sys; from maa_jax.encoders.text import TextConditioner as T; import json;"
        f"T.from_folder({str(model)!r}).prepare(['a crow']);"
        "absent = {'torch', 'tensorflow', 'transformers'};"
        "print(json.dumps(sorted(absent & set(sys.modules))))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == []
