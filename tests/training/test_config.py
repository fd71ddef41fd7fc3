"""Every key of a training config has a type and limits, checked before any work."""

import importlib

import ml_collections
import pytest

from maa_jax.train.loop import train
from maa_jax.training import config as run_config

CONFIGS = {
    "audio_classifier": (None, "cnn14", "demo", "runlocal", "bundled"),
    "autoencoder": (None, "demo", "runlocal", "bundled"),
    "captioner": (None, "self_critical", "demo", "runlocal", "bundled"),
    "clap": (None, "demo", "runlocal", "bundled"),
    "clip": (None, "demo", "runlocal", "bundled"),
    "event_classifier": (None, "demo", "runlocal", "bundled"),
    "inpainting": (None, "thin", "frames70", "demo", "runlocal", "bundled"),
    "retriever": (None, "demo", "runlocal", "bundled"),
    "t2a": (None, "paper", "clap", "t5", "bert", "clip", "demo", "runlocal", "bundled"),
    "v2a": (None, "global", "demo", "runlocal", "bundled"),
    "vocoder": (None, "bigvgan", "vocos", "demo", "runlocal", "bundled"),
}
NAN = float("nan")

# (key, values that no run can have)
EVERYWHERE = [
    ("stage", ["difusion", "", None, 3]),
    ("seed", [-1, 2**32, 0.5, "0", None]),
    ("batch_size", [0, -4, 2.5, True, 10**9]),
    ("accumulate", [0, -1]),
    ("total_steps", [0, -1, 1e6]),
    ("total_epochs", [-1, 0.5]),
    ("dtype", ["float8", "float16", "float64", "bf16", "", None]),
    ("remat", ["no", 1, None]),
    ("ema_decay", [1, 2, -0.1, NAN, "0.9"]),
    ("mesh.data", [0, -2, 1.0]),
    ("mesh.fsdp", [0, "2"]),
    ("data.samples", [0, -1, 2.5, 10**12]),
    ("data.workers", [-1, 10**6]),
    ("data.prefetch", [0]),
    ("data.dataset", [None, 3]),
    ("data.reprogram.n_events", [(1, 1), (0, 0, 0), (1, -1, 1), (1, NAN, 1)]),
    ("data.reprogram.gain_db", [(3, -3), (0,), (NAN, 0)]),
    ("data.reprogram.crossfade", [-1, float("inf")]),
    ("mel.log", ["ln", None]),
    ("mel.hop_length", [0, 2048]),
    ("mel.fmax", [9000, -1]),
    ("optimizer.base_lr", [0, -1e-4, NAN, float("inf"), "1e-4", None]),
    ("optimizer.scale_lr", [1, "True"]),
    ("optimizer.warmup_steps", [-1, 0.5]),
    ("optimizer.cosine_steps", [-1, 1]),
    ("optimizer.decay_rate", [0, 1.1]),
    ("optimizer.decay_steps", [0]),
    ("optimizer.b1", [1, -0.1, NAN]),
    ("optimizer.b2", [1.0, 2]),
    ("optimizer.weight_decay", [-0.1, NAN]),
    ("optimizer.clip_norm", [-1, NAN]),
    ("log_every", [0, -1, 2.5]),
    ("eval_every", [0]),
    ("summary_every", [0]),
    ("checkpoint_every", [0]),
    ("keep", [0, -1]),
    ("best", ["validation/los", "train/loss", "loss", None]),
    ("evaluators", [{"clap_score": {"every": -1, "num_prompts": 1, "clap": ""}}, {"fad": 3}, 0]),
    ("profile", [(3,), (0, 2), (1, 2, 3), (1, 0), "12"]),
    ("bach_size", [3]),
    ("optimizer.learning_rate", [1e-3]),
    ("mesh.model", [1]),
]
OF_STAGES = {
    "audio_classifier": [
        ("classifier.name", ["vggish", "", None]),
        ("classifier.melception.width", [0, 1.5]),
        ("classifier.melception.frames", [848]),
        ("classifier.cnn14.channels", [[], [0]]),
        ("classifier.cnn14.num_classes", [527]),
        ("labels", ["x", [3]]),
    ],
    "autoencoder": [
        ("autoencoder.layers_per_block", [2.5]),
        ("autoencoder.norm_num_groups", ["8"]),
        ("discriminator.name", ["patchgan"]),
        ("discriminator.start", [-1]),
        ("discriminator.r1_weight", [-1, NAN]),
        ("kl_weight", [-1, NAN]),
        ("init_from", [None, 3]),
    ],
    "captioner": [
        ("loss", ["ce"]),
        ("label_smoothing", [1, -0.1]),
        ("captioner.max_length", [2]),
        ("captioner.encoder.channels", ["64"]),
        ("captioner.eos_token_id", [3]),
        ("init_from", ["models/clap"]),
    ],
    "clap": [
        ("clap.text_encoder.num_attention_heads", [5]),
        ("clap.audio_encoder.chanels", [(8,)]),
        ("augment.gain_db", [-1, NAN]),
        ("augment.shift", [2]),
        ("tokenizer", [None]),
        ("init_from.text_encodr", ["x"]),
    ],
    "clip": [
        ("clip.text_config.num_attention_heads", [5]),
        ("clip.vision_config.patch_size", [0]),
        ("tokenizer", [None]),
    ],
    "event_classifier": [
        ("event_classifier.families", [[], "x"]),
        ("event_classifier.events", [0, 1.5]),
        ("event_classifier.encoder.channels", [[], [0]]),
    ],
    "inpainting": [
        ("masks.names", [(), ("thik",), "thick"]),
        ("masks.everything", [-0.1, 1.5, NAN]),
        ("latents", ["stored"]),
    ],
    "retriever": [
        ("margin", [-0.1, NAN]),
        ("negatives", ["hard"]),
        ("retriever.audio_transformer.max_frames", [31]),
        ("retriever.audio_transformer.num_attention_heads", [3]),
    ],
    "t2a": [
        ("unet.block_out_channels", ["320", (321,)]),
        ("unet.channels", [4]),
        ("schedule.beta_schedule", ["cosine"]),
        ("uncond_probability", [-0.1, 1.5, NAN]),
        ("noise_draws", [0]),
        ("summary.prompts", [(), "rain", (3,)]),
        ("summary.guidance_scale", [NAN]),
        ("vocoder", [None]),
    ],
    "v2a": [("conditioning", ["globl", "", None])],
    "vocoder": [
        ("generator.name", ["hifi-gan"]),
        ("generator.hifigan.upsample_rates", [(8, 8, 8), "8"]),
        ("generator.hifigan.log", ["log"]),
        ("discriminator.start", [-1]),
        ("mel_weight", [-1, NAN]),
    ],
}


def config_of(name, arg="runlocal"):
    module = importlib.import_module(f"maa_jax.configs.{name}")
    return module.get_config(arg) if arg else module.get_config()


def with_value(config, key, value):
    """The config as a user's own file may give it, with any type."""
    values = config.to_dict()
    *path, last = key.split(".")
    block = values
    for name in path:
        block = block[name]
    block[last] = value
    return ml_collections.ConfigDict(values)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_agrees_with_its_schema(name):
    for arg in CONFIGS[name]:
        run = run_config.check(config_of(name, arg))
        assert run.batch_size == config_of(name, arg).batch_size


@pytest.mark.parametrize("name", CONFIGS)
def test_a_value_that_no_run_can_have_is_refused_by_its_key(name):
    config = config_of(name)
    for key, values in EVERYWHERE + OF_STAGES[name]:
        for value in values:
            with pytest.raises(ValueError) as error:
                run_config.check(with_value(config, key, value))
                pytest.fail(f"{key}={value!r} was taken")
            assert all(part in str(error.value) for part in key.split(".")), (key, value)


def test_training_checks_its_config_before_any_work(tmp_path):
    config = with_value(config_of("clap"), "log_every", 0)
    with pytest.raises(ValueError, match=r"config\.log_every=0: give a whole number from 1"):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_missing_and_unknown_keys_are_named_with_the_nearest():
    values = config_of("t2a").to_dict()
    del values["noise_draws"]
    with pytest.raises(ValueError, match=r"config\.noise_draws is missing"):
        run_config.check(values)
    values = config_of("t2a").to_dict() | {"ema_decy": 0.9}
    with pytest.raises(ValueError, match=r"config\.ema_decy is not a key.*'ema_decay'"):
        run_config.check(values)


@pytest.mark.parametrize("name", ["event_classifier", "audio_classifier"])
def test_a_classifier_of_recordings_is_not_trained_on_joined_ones(name):
    config = with_value(config_of(name), "data.reprogram.events", "sonic_sounds")
    with pytest.raises(ValueError, match=r"config\.data\.reprogram\.events='sonic_sounds'.*empty"):
        run_config.check(config)
