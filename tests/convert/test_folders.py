import json
import subprocess
import sys

import jax
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
from maa_jax.model_folder import networks, torch_layout
from maa_jax.models.bert import BertConfig
from maa_jax.models.bigvgan import BigVGAN, BigVGANConfig
from maa_jax.models.clap import ProjectionConfig
from maa_jax.models.hifigan import HifiGanConfig
from maa_jax.stages import make_stage
from maa_jax.text.tokenizer import Tokenizer, build_tokenizer
from maa_jax.training.checkpoint import Checkpoints, write_config
from tests.conftest import CAPTIONS, random_network
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
    """The sound that diffusers, transformers and a plain BigVGAN generate from the files."""
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
        return vocoder(mel).numpy()


@pytest.mark.parametrize(
    "size",
    [
        "small",
        pytest.param("full", marks=pytest.mark.full),
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
    theirs = pytorch_sound(tmp_path, folder, "a crow caws", noise, sizes["steps"], 3.0)[
        :, : ours.shape[1]
    ]
    assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max()

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
