import jax
import numpy as np
import pytest

from maa_jax.diffusion.schedule import Schedule
from maa_jax.model_folder import networks


def close(ours, theirs):
    theirs = theirs.detach().numpy()
    assert np.abs(np.asarray(ours) - theirs).max() < 1e-4 * np.abs(theirs).max()


def call(folder, name, *inputs, method="__call__"):
    """Returns the outputs of the network in a folder."""
    graphdef, params = networks.load_network(folder, name)
    run = lambda params, *inputs: getattr(networks.build(graphdef, params), method)(*inputs)
    return jax.jit(run)(params, *inputs)


def test_diffusers_opens_the_folder_and_gets_the_same(tiny_model):
    torch = pytest.importorskip("torch", reason="compares with PyTorch's networks")
    diffusers = pytest.importorskip("diffusers", reason="compares with diffusers' networks")
    rng = np.random.default_rng(0)

    theirs = diffusers.UNet2DConditionModel.from_pretrained(tiny_model, subfolder="unet").eval()
    x = rng.standard_normal((2, 8, 10, 8)).astype("f")
    context = rng.standard_normal((2, 77, 24)).astype("f")
    eps = theirs(torch.tensor(x), torch.tensor([7, 900]), torch.tensor(context)).sample
    ours = call(tiny_model, "unet", x.transpose(0, 2, 3, 1), np.array([7, 900]), context)
    close(ours.transpose(0, 3, 1, 2), eps)

    theirs = diffusers.AutoencoderKL.from_pretrained(tiny_model, subfolder="vae").eval()
    assert theirs.config.scaling_factor == networks.load_config(tiny_model, "vae").scaling_factor
    mel = rng.standard_normal((1, 1, 80, 32)).astype("f")
    latents = theirs.encode(torch.tensor(mel)).latent_dist.mean
    ours, _ = call(tiny_model, "vae", mel.transpose(0, 2, 3, 1), method="encode")
    close(ours.transpose(0, 3, 1, 2), latents)
    ours = call(tiny_model, "vae", ours, method="decode")
    close(ours.transpose(0, 3, 1, 2), theirs.decode(latents).sample)

    scheduler = diffusers.DDIMScheduler.from_pretrained(tiny_model, subfolder="scheduler")
    scheduler.set_timesteps(20)
    np.testing.assert_array_equal(scheduler.timesteps.numpy()[::-1], Schedule().timesteps(20))
    np.testing.assert_allclose(scheduler.alphas_cumprod, Schedule().alphas_cumprod, rtol=1e-5)


def test_transformers_opens_the_folder_and_gets_the_same(tiny_model):
    torch = pytest.importorskip("torch", reason="compares with PyTorch's networks")
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    rng = np.random.default_rng(0)

    theirs = transformers.SpeechT5HifiGan.from_pretrained(tiny_model, subfolder="vocoder").eval()
    mel = rng.standard_normal((2, 16, 80)).astype("f")
    close(call(tiny_model, "vocoder", mel), theirs(torch.tensor(mel)))

    theirs = transformers.BertModel.from_pretrained(
        tiny_model, subfolder="text_encoder", add_pooling_layer=False
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model, subfolder="tokenizer")
    tokens = tokenizer(["a crow caws"], padding="max_length", return_tensors="pt")["input_ids"]
    assert tokens.shape == (1, 77)
    close(call(tiny_model, "text_encoder", tokens.numpy()), theirs(tokens).last_hidden_state)
