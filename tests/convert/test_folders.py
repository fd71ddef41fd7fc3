import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

import maa_jax
from benchmarks.networks import TorchBigVGAN
from maa_jax.audio.mel import MelConfig
from maa_jax.configs import t2a
from maa_jax.convert import folders, released, torch_files, vocoders
from maa_jax.diffusion.schedule import Schedule
from maa_jax.files import lock
from maa_jax.model_folder import networks, torch_layout
from maa_jax.model_folder.index import load_index
from maa_jax.models.bert import BertConfig
from maa_jax.models.bigvgan import BigVGAN, BigVGANConfig
from maa_jax.models.clap import ProjectionConfig
from maa_jax.models.hifigan import HifiGanConfig
from maa_jax.stages import make_stage
from maa_jax.text.tokenizer import Tokenizer, build_tokenizer
from maa_jax.training.checkpoint import Checkpoints
from maa_jax.training.workdir_files import write_config, write_data
from maa_jax.vocoder import Vocoder
from tests.conftest import CAPTIONS, random_network
from tests.fuzz import released_files
from tests.parity import named_weights

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    """A workdir of the diffusion stage with checkpoints at steps 1 and 2, and the last state."""
    workdir = str(tmp_path_factory.mktemp("run"))
    config = t2a.get_config("runlocal")
    config.autoencoder = config.text_encoder = config.vocoder = str(tiny_model)
    config.unet.update(block_out_channels=(16, 16), layers_per_block=1, cross_attention_dim=24)
    config.data.samples = 16384
    write_data(workdir, {"sonic_sounds:train": "a digest", "sonic_sounds:validation": "another"})
    write_config(workdir, config)
    rng = np.random.default_rng(0)  # faster than compiling the initialisation
    state = jax.tree.map(
        lambda x: (0.1 * rng.standard_normal(x.shape)).astype(x.dtype),
        jax.eval_shape(make_stage(config).init, jax.random.key(0)),
    )
    latents = state.extra["latents"] | {"scale": np.float32(0.25)}
    state = state.replace(extra=state.extra | {"latents": latents})
    with Checkpoints(workdir, keep=2) as checkpoints:
        for step in (1, 2):
            ema = jax.tree.map(lambda x, step=step: x + step, state.params)
            state = state.replace(step=np.int32(step), ema=ema)
            checkpoints.save(step, state)
        checkpoints.wait()
    return workdir, state


def test_the_latest_average_becomes_a_model_that_makes_sounds(run, tmp_path):
    workdir, state = run
    out = tmp_path / "models" / "mine"
    done = subprocess.run(
        [sys.executable, "-m", "maa_jax.convert", "--from=workdir", f"--workdir={workdir}",
         f"--out={out}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stdout
    _, params = networks.load_network(out, "unet")
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(state.ema["unet"]))
    assert networks.load_config(out, "vae").scaling_factor == 0.25
    assert load_index(out)["digests"] == {"sonic_sounds:train": "a digest"}
    pipe = maa_jax.Pipeline.from_pretrained(out)
    assert pipe("rain", steps=1).shape == (1, 16384)


def test_another_step_and_half_precision(run, tmp_path):
    workdir, state = run
    folders.workdir_to_folder(workdir, str(tmp_path), step=1, dtype="float16")
    _, params = networks.load_network(tmp_path, "unet")
    want = jax.tree.map(lambda x: x - 1, jax.device_get(state.ema["unet"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), params, want)
    for path in tmp_path.glob("*/*.safetensors"):
        assert {v.dtype for v in load_file(path).values()} == {np.dtype("float16")}
    maa_jax.Pipeline.from_pretrained(tmp_path)


def test_mistakes_are_named(run, tmp_path):
    workdir, _ = run
    with pytest.raises(ValueError, match=r"--step=7: --workdir=.*holds \[1, 2\]"):
        folders.workdir_to_folder(workdir, str(tmp_path / "out"), step=7)
    with pytest.raises(FileNotFoundError, match=r"--workdir=.*config\.json"):
        folders.workdir_to_folder(str(tmp_path), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


SIZES = {
    "small": dict(
        cases=("unet_small", "autoencoder_small"),
        width=48,
        text=dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=96),
        vocoder=BigVGANConfig(
            upsample_initial_channel=32,
            upsample_rates=(8, 8, 4),
            upsample_kernel_sizes=(16, 16, 8),
            resblock_kernel_sizes=(3,),
            resblock_dilation_sizes=((1, 3),),
        ),
        seconds=0.512,
        steps=4,
    ),
    "full": dict(
        cases=("unet_paper", "autoencoder_paper"),
        width=1024,
        text=dict(vocab_size=30522, max_position_embeddings=512),
        vocoder=BigVGANConfig(),
        seconds=1.024,
        steps=20,
    ),
}


def to_tensors(arrays):
    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}


def write_release(folder, cases, width, text, vocoder, **_):
    """Writes the released files with weights from names: checkpoint, BigVGAN, tokenizer."""
    tokenizer = build_tokenizer(CAPTIONS, folder / "tokenizer", 128)
    sizes = dict(vocab_size=tokenizer.vocab_size, max_position_embeddings=80) | text
    unet, autoencoder = (named_weights.state_dict(case) for case in cases)
    state = {f"model.diffusion_model.{k}": v for k, v in unet.items()}
    state |= {f"first_stage_model.{k}": v for k, v in autoencoder.items()}
    text = BertConfig(**sizes)
    for part, config in (("base", text), ("projection", ProjectionConfig(text.hidden_size, width))):
        tower = random_network(lambda _, c=config: networks.abstract(c), 0)
        names = torch_layout.to_torch(tower)
        state |= {f"cond_stage_model.caption_encoder.{part}.{k}": v for k, v in names.items()}
    state |= {
        "cond_stage_model.caption_encoder.base.embeddings.position_ids": np.arange(80)[None],
        "betas": np.linspace(0.00085**0.5, 0.0120**0.5, 1000, dtype="f") ** 2,
        "first_stage_model.loss.logvar": np.zeros(()),
        "scale_factor": np.float32(0.7),
    }
    content = {"state_dict": to_tensors(state), "epoch": 3, "global_step": 7}
    torch.save(content, folder / "maa1_full.ckpt")
    (folder / "bigvgan").mkdir()
    generator = torch_layout.to_torch(
        random_network(lambda rngs: BigVGAN(vocoder, weight_norm=True, rngs=rngs), 1)
    )
    torch.save({"generator": to_tensors(generator)}, folder / "bigvgan" / "best_netG.pt")
    args = json.loads(json.dumps({name: getattr(vocoder, name) for name in vocoders._SHARED}))
    args |= {"num_mels": 80, "snake_logscale": True}
    (folder / "bigvgan" / "args.yml").write_text(yaml.safe_dump(args))


def pytorch_sound(release, folder, prompt, noise, steps, scale):
    """Mels, and their sound, that diffusers, transformers and a plain BigVGAN make of the files."""
    import diffusers
    import transformers

    tokens = torch.from_numpy(
        np.asarray(Tokenizer.from_folder(folder / "tokenizer")(["", prompt]))
    ).long()
    bert = transformers.BertModel.from_pretrained(folder / "text_encoder", add_pooling_layer=False)
    weights = to_tensors(load_file(folder / "text_projection" / "model.safetensors"))
    F = torch.nn.functional
    with torch.no_grad():
        hidden = bert(tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
        x = hidden @ weights["linear1.weight"].T
        y = F.gelu(x) @ weights["linear2.weight"].T
        context = F.layer_norm(
            x + y, x.shape[-1:], weights["layer_norm.weight"], weights["layer_norm.bias"]
        )
        unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
        scheduler.set_timesteps(steps)
        latents = torch.from_numpy(np.moveaxis(noise, -1, 1).copy())
        for t in scheduler.timesteps:
            without, given = unet(torch.cat([latents] * 2), t, context).sample.chunk(2)
            latents = scheduler.step(without + scale * (given - without), t, latents).prev_sample
        vae = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae")
        mel = vae.decode(latents / vae.config.scaling_factor).sample[:, 0]
        generator = torch.load(release / "bigvgan" / "best_netG.pt", weights_only=True)["generator"]
        vocoder = TorchBigVGAN(networks.load_config(folder, "vocoder"), True)
        norm = {"weight_g": "original0", "weight_v": "original1"}
        names = {}
        for name, value in generator.items():
            stem, _, leaf = name.rpartition(".")
            if leaf in norm:
                name = f"{stem}.parametrizations.weight.{norm[leaf]}"
            if not leaf == "filter":
                names[name] = value
        vocoder.load_state_dict(names)
        return mel.numpy().swapaxes(1, 2), vocoder(mel).numpy()


@pytest.mark.parametrize(
    "size",
    [
        "small",
        # Minutes. The full-size networks agree with their stored arrays, one by one, in every run.
        pytest.param("full", marks=pytest.mark.slow),
    ],
)
def test_released_files_sound_here_as_in_pytorch(size, tmp_path, capsys):
    sizes = SIZES[size]
    write_release(tmp_path, **sizes)
    folder = folders.released_to_folder(
        str(tmp_path / "model"),
        checkpoint=str(tmp_path / "maa1_full.ckpt"),
        vocoder=str(tmp_path / "bigvgan"),
        tokenizer=str(tmp_path / "tokenizer"),
    )
    assert networks.load_config(folder, "vae").scaling_factor == np.float32(0.7)
    pipe = maa_jax.Pipeline.from_pretrained(folder)
    shape = pipe.latent_shape(sizes["seconds"])
    noise = np.random.default_rng(0).standard_normal((1, *shape)).astype("f")
    request = dict(steps=sizes["steps"], guidance_scale=3.0, duration=sizes["seconds"])
    ours = pipe(["a crow caws"], initial_latents=noise, **request)
    mels, theirs = pytorch_sound(tmp_path, folder, "a crow caws", noise, sizes["steps"], 3.0)
    graph, params = networks.load_network(folder, "vocoder")
    wavs = jax.jit(networks.build(graph, params))(mels)
    assert np.abs(wavs - theirs).max() < 1e-3 * np.abs(theirs).max()
    # A pipeline also takes the vocoder's offset and its clicks at both ends away.
    vocoder = jax.jit(Vocoder.from_folder(folder, MelConfig()))
    cleaned, _ = vocoder(params, mels, np.array([ours.shape[1]]))
    assert np.abs(ours - cleaned[:, : ours.shape[1]]).max() < 1e-3 * np.abs(theirs).max()

    if size == "small":  # and back, bit for bit except for entries that nothing reads
        folders.folder_to_released(str(folder), str(tmp_path / "back" / "maa.ckpt"))
        there = torch.load(tmp_path / "maa1_full.ckpt", weights_only=True)["state_dict"]
        back = torch.load(tmp_path / "back" / "maa.ckpt", weights_only=True)["state_dict"]
        lost = set(there) - set(back)
        assert lost == {k for k in there if k.endswith((".position_ids", ".loss.logvar"))}
        for name in there.keys() - lost - {"betas"}:
            assert torch.equal(there[name], back[name]), name
        torch.testing.assert_close(back["betas"], there["betas"], rtol=1e-6, atol=0)
        first = vocoders.read_vocoder(tmp_path / "back" / "bigvgan")
        assert first[0] == networks.load_config(folder, "vocoder")
        _, kept = networks.load_network(folder, "vocoder")
        again = torch_layout.from_torch(networks.abstract(first[0]), first[1])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, kept)


def test_a_hifigan_alone_both_ways(tmp_path):
    config = HifiGanConfig(upsample_initial_channel=64, log="log")
    tensors = named_weights.state_dict("hifigan_small")
    (tmp_path / "there").mkdir()
    torch.save({"generator": to_tensors(tensors)}, tmp_path / "there" / "generator_v1")
    sizes = {k: getattr(config, k) for k in vocoders._SHARED} | {"sampling_rate": 16000}
    (tmp_path / "there" / "config.json").write_text(json.dumps(sizes))
    folder = folders.released_to_folder(
        str(tmp_path / "model"), vocoder=str(tmp_path / "there"), vocoder_log="log"
    )
    config = dataclasses.replace(config, mel=MelConfig(log="log"))
    assert networks.load_config(folder, "vocoder") == config
    graph, params = networks.load_network(folder, "vocoder")
    want = named_weights.reference("hifigan_small")
    wav = jax.jit(networks.build(graph, params))(np.moveaxis(want["mel"], 1, 2))
    assert np.abs(wav - want["wav"].reshape(wav.shape)).max() < 1e-4 * np.abs(want["wav"]).max()
    mel = MelConfig(log="log")
    vocoders.write_vocoder(tmp_path / "back", config, params, mel)
    _, again = vocoders.read_vocoder(tmp_path / "back", mel)
    again = torch_layout.from_torch(networks.abstract(config), again)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, params)


class Payload:
    """An object that must not be unpickled."""


def test_released_files_that_cannot_be_read(tmp_path):
    torch.save({"state_dict": {}, "callback": Payload()}, tmp_path / "code.ckpt")
    with pytest.raises(
        ValueError, match=r"code\.ckpt: refused.*tests\.convert\.test_folders\.Payload"
    ):
        torch_files.read_tensors(tmp_path / "code.ckpt")
    whole = tmp_path / "whole.ckpt"
    torch.save({"state_dict": {"other.weight": torch.zeros(3)}}, whole)
    (tmp_path / "cut.ckpt").write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"cut\.ckpt: broken"):
        torch_files.read_tensors(tmp_path / "cut.ckpt")
    with pytest.raises(ValueError, match=r"no such file"):
        torch_files.read_tensors(tmp_path / "none.ckpt")
    with pytest.raises(ValueError, match=r"no place for: other.*all of model\.diffusion"):
        released.from_checkpoint(torch_files.read_tensors(whole))
    with pytest.raises(ValueError, match=r"no released vocoder; expected args\.yml"):
        vocoders.read_vocoder(tmp_path)
    with pytest.raises(ValueError, match="betas: linear neither"):
        released.schedule_of({"betas": np.geomspace(1e-4, 2e-2, 1000)})
    assert released.schedule_of({}) == Schedule()
    with pytest.raises(ValueError, match=r"--vocoder_log=log: the checkpoint's mels are base-10"):
        folders.released_to_folder("out", checkpoint="a", vocoder="b", vocoder_log="log")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A released checkpoint of small networks, and its tokenizer."""
    folder = tmp_path_factory.mktemp("small")
    build_tokenizer(CAPTIONS, folder / "tokenizer", 96)
    torch.save({"state_dict": released_files.checkpoint()}, folder / "maa1_full.ckpt")
    return folder


def convert(small, out, *, state=None, **options):
    path = small / "maa1_full.ckpt"
    if state is not None:
        path = out.parent / "other.ckpt"
        torch.save({"state_dict": state}, path)
    given = dict(checkpoint=str(path), tokenizer=str(small / "tokenizer")) | options
    return folders.released_to_folder(str(out), **given)


def test_all_that_a_checkpoint_lacks_is_listed_under_its_own_names(small, tmp_path):
    state = released_files.checkpoint()
    unet, vae, text = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
    del state[f"{unet}out.2.weight"], state[f"{vae}encoder.norm_out.bias"]
    state[f"{vae}quant_conv.bias"] = torch.zeros(3)
    state[f"{unet}out.2.bias"] = torch.zeros(4, dtype=torch.int8)
    state[f"{text}caption_encoder.projection.linear1.weight"] = torch.zeros(())
    state["ema.decay"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"other\.ckpt: not a released") as error:
        convert(small, tmp_path / "out", state=state)
    for fault in (
        "missing: out.2.weight",
        f"missing: {vae}encoder.norm_out.bias",
        f"shape of {vae}quant_conv.bias: (3,), expected (8,)",
        "shape of linear1.weight: (), expected 2 axes",
        "no place for: ema.decay",
    ):
        assert fault in str(error.value)
    state = released_files.checkpoint() | {"scale_factor": torch.ones(3)}
    with pytest.raises(ValueError, match=r"scale_factor=\[1.0, 1.0, 1.0\]: expected one number"):
        convert(small, tmp_path / "out", state=state)
    assert not (tmp_path / "out").exists()


def test_a_failed_convert_leaves_nothing_new_and_a_second_one_waits(small, tmp_path):
    out = tmp_path / "out"
    loud = released_files.checkpoint()
    loud["cond_stage_model.caption_encoder.projection.linear2.weight"][0, 0] = 1e6
    with pytest.raises(ValueError, match=r"text_projection: not finite as float16: linear2"):
        convert(small, out, state=loud, dtype="float16")
    assert not out.exists()
    convert(small, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (out / ".tmp-of-a-killed-one").mkdir()
    with pytest.raises(ValueError, match="not finite as float16"):
        convert(small, out, state=loud, dtype="float16")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not list(out.glob(".*"))
    with lock(out), pytest.raises(ValueError, match="is in use by process"):
        convert(small, out)


@pytest.mark.parametrize("kind", [np.float16, jnp.bfloat16, np.float32])
def test_a_schedule_is_known_again_from_rounded_betas(kind):
    for schedule in (
        Schedule(),
        Schedule(1000, 0.0015, 0.0195),
        Schedule(50, 1e-4, 0.02, "linear"),
    ):
        betas = schedule.betas.astype(kind).astype(np.float32)
        if kind == jnp.bfloat16 and schedule.beta_end == 0.0195:
            continue  # two of its digits are gone
        assert released.schedule_of({"betas": betas}) == schedule


def test_a_released_layout_gives_back_what_it_was_given_or_refuses_it(small, tmp_path):
    with pytest.raises(ValueError, match=r"unet: .*cannot hold it: .*norm_num_groups=32"):
        folders.folder_to_released("bundled", str(tmp_path / "a.ckpt"))
    assert not list(tmp_path.iterdir())
    there = convert(small, tmp_path / "there")
    folders.folder_to_released(str(there), str(tmp_path / "files" / "a.ckpt"))
    back = folders.released_to_folder(
        str(tmp_path / "back"),
        checkpoint=str(tmp_path / "files" / "a.ckpt"),
        tokenizer=str(tmp_path / "files" / "tokenizer"),
    )
    for path in (path for path in there.rglob("*") if path.is_file()):
        assert path.read_bytes() == (back / path.relative_to(there)).read_bytes(), path
    index = json.loads((there / "model_index.json").read_text())
    index["mel"]["fmax"] = 7600.0
    (there / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"mel: .*cannot hold fmax=7600"):
        folders.folder_to_released(str(there), str(tmp_path / "b.ckpt"))


def write_files(folder, sizes, *tensors, names=("best_netG.pt",)):
    folder.mkdir(exist_ok=True)
    (folder / "args.yml").write_text(yaml.safe_dump(sizes))
    for name, generator in zip(names, tensors, strict=True):
        torch.save(generator, folder / name)
    return folder


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("fmax", 7600),
        ("fmin", 20),
        ("n_fft", 2048),
        ("win_size", 800),
        ("hop_size", 200),
        ("num_mels", 100),
        ("sampling_rate", 22050),
        ("mel_fmax", 11025.0),
        ("filter_length", 512),
        ("upsample_rates", [8, 16]),
        ("resblock", "2"),
        ("use_tanh_at_final", False),
    ],
)
def test_a_vocoder_of_another_front_end_or_kind_is_refused(tmp_path, setting, value):
    sizes, tensors = released_files.generator("bigvgan")
    write_files(tmp_path / "v", sizes | {setting: value}, {"generator": tensors})
    with pytest.raises(ValueError, match=rf"args\.yml: .*{setting}=") as error:
        vocoders.read_vocoder(tmp_path / "v")
    assert "\n" not in str(error.value)


def test_what_a_vocoders_weights_lack_is_listed_and_of_several_the_last_is_read(tmp_path, capsys):
    sizes, tensors = released_files.generator("hifigan")
    config, good = vocoders.read_vocoder(
        write_files(tmp_path / "v", sizes, {"state_dict": tensors})
    )
    renamed = {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): value
        for name, value in tensors.items()
    }
    again = vocoders.read_vocoder(write_files(tmp_path / "r", sizes | {"fmax": None}, renamed))[1]
    assert again.keys() == good.keys()
    assert all(np.array_equal(again[name], good[name]) for name in good)
    few = {name: x for name, x in tensors.items() if name != "conv_post.weight_g"}
    del few["ups.0.bias"]
    with pytest.raises(ValueError, match=r"missing: conv_post\.weight_g, missing: ups\.0\.bias"):
        vocoders.read_vocoder(write_files(tmp_path / "f", sizes, {"generator": few}))
    names = ("g_00000900", "g_00001000")
    several = write_files(tmp_path / "s", sizes, few, {"generator": tensors}, names=names)
    assert vocoders.read_vocoder(several)[0] == config
    assert "g_00001000, the last of 2" in capsys.readouterr().out
    write_files(several, sizes, {"generator": tensors}, names=("generator_v2",))
    with pytest.raises(ValueError, match=r"several files of weights, g_00000900, g_00001000, gen"):
        vocoders.read_vocoder(several)
