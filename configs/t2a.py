"""Text to audio: the latent diffusion stage (paper sections 3.5 and 5.2, Table 6).

    python -m maa_jax.train --config=configs/t2a.py --workdir=runs/t2a \
        --config.autoencoder=models/autoencoder --config.text_encoder=models/clap

Arguments: none, the paper's U-Net of 160,223,684 parameters on clips of 624 frames; `paper`, the
same on the paper's data; `demo` and `runlocal` as in common.py; `bundled`, the U-Net inside the
package; and the rows of the paper's Table 1, each with another frozen text encoder and a U-Net
whose context is as wide as its states:

    argument  text encoder                          width  its parameters  and the U-Net  paper
    clap      models/clap: Microsoft's of 2022      1024    110,728,704    270,952,388    332 M
    t5        google-t5/t5-large                    1024    334,939,648    495,163,332    563 M
    bert      google-bert/bert-large-uncased        1024    334,092,288    494,315,972    809 M
    clip      openai/clip-vit-large-patch14's text   768    123,060,480    280,498,884    576 M

The numbers count only the parameters in use: no pooler, no decoder, one tower of two. The paper
does not say what its sums include, nor which BERT and CLIP it used. The last three encoders are
fetched from the Hugging Face hub, or read from a folder with `--config.text_encoder=DIR`; FLAN's T5
is `google/flan-t5-large` on the hub. The contexts of all captions from a large encoder can be
computed once:

    python -m maa_jax.embed --config=configs/t2a.py:t5 --out=embeddings/t5
    python -m maa_jax.train --config=configs/t2a.py:t5 --config.text_embeddings=embeddings/t5 ...

The learning rate is the release's: 1.6e-4, its base of 1e-5 times 4 GPUs times batches of 4, after
10,000 steps of warm-up and with gradients clipped at a norm of 1. It is kept for this config's
batch of 144, for which LDM's rule would make it 1.44e-3, and the paper's base of 0.005, scaled by
that rule, 0.72. The full size has not been trained to completion here: the paper's run took 2 M
steps on 18 V100, with batches of a size it does not state.

Where it departs from the paper, on purpose:

- 20 % of the conditions are dropped throughout (the release: 10 %). The paper does so in a
  fine-tune after the base run (E.2): train with `--config.uncond_probability=0`, convert, and go on
  from there with `--config.init_from=DIR` and 0.2.
- Mels are log10 magnitudes of about -5 to 1.5, as in the release, and not scaled to [0, 1] (3.4).
- A moving average of the weights, decay 0.9999, is kept and sampled from; the release keeps none:
  `--config.ema_decay=0`.
- Without `paper`, the dataset is the 130 recordings in the package.
- The released T5 encoder lets padding be attended to, and the released BERT is not a pre-trained
  one; here padding is masked, and both are pre-trained.
"""

import functools

from maa_jax.configs import common
from maa_jax.diffusion.schedule import Schedule
from maa_jax.evaluators import PROTOCOLS
from maa_jax.models.unet import UNetConfig


def get_config(arg: str | None = None):
    """Returns the config of an argument; see the module's docstring."""
    rows = {name: functools.partial(row, name) for name in ("clap", "t5", "bert", "clip")}
    return common.pick(
        arg, full=full, paper=paper, demo=demo, runlocal=runlocal, bundled=bundled, **rows
    )()


def full():
    config = common.base("diffusion")
    config.batch_size = 144  # 18 devices x 8
    config.total_steps = 2_000_000
    config.ema_decay = 0.9999
    config.uncond_probability = 0.2
    config.noise_draws = 1  # noisy copies of each latent in a step, which share the encoders' cost
    # Timesteps at which each recording's validation loss is taken. Of 13 recordings, 16 give the
    # loss of the bundled model to 0.2 %, one to 30 %: it is largest at the few lowest timesteps.
    config.eval_draws = 16
    # Model folders, from which `vae/`, `text_encoder/` with `tokenizer/`, and `vocoder/` are read.
    # The text encoder may also be a hub id, or clap, t5, bert or clip (encoders/text.py).
    config.autoencoder = "models/autoencoder"
    config.text_encoder = "models/clap"
    config.conditioning = "tokens"  # or one embedding, as in v2a.py
    # Folders that maa_jax.embed makes: all captions' contexts, and the training examples' latents.
    config.text_embeddings = ""
    config.latents = ""
    config.vocoder = ""  # for the sounds in TensorBoard; copied into the exported model folder

    config.unet = common.fields_of(UNetConfig)
    config.schedule = common.fields_of(Schedule)
    # Scores of sounds generated from validation captions (evaluators/periodic.py); needs a vocoder.
    for name in ("clap_score", "label_accuracy", "waveform", *PROTOCOLS):
        config.evaluators[name] = common.block(
            every=0,  # steps from one evaluation to the next, 0 for none
            num_prompts=64,
            clap="bundled",
            melception="",  # model folders of the networks of protocols
            cnn14="",
            vggish="",
        )
    config.optimizer.base_lr = 1.6e-4
    config.optimizer.warmup_steps = 10_000
    config.optimizer.weight_decay = 0.01  # the default of PyTorch's AdamW
    config.optimizer.clip_norm = 1.0

    config.summary = common.block(
        prompts=(
            "a crow caws",
            "a deep kick drum",
            "a cymbal is struck and rings",
            "a guitar chord",
            "vinyl crackle and hiss",
        ),
        guidance_scale=3.0,
    )
    return config


def paper():
    """The paper's mixture (Table 4), 3,000 hours, with events joined to the pairs (3.2.2).

    `enhanced/NAME` is the dataset NAME with captions by distillation, which replace labels as in
    Appendix A. All must be made before: put each one's files where docs/data.md says, then

        python -m maa_jax.enhance --dataset=NAME --name=NAME --out=DATA_DIR \
            --captioner=models/captioner --retriever=models/retriever --clap=models/clap \
            --bank_captions="clotho + audiocaps + macs"

    for each enhanced one, and train with `--config.data.data_dir=DATA_DIR`. Leave out what you
    cannot get with `--config.data.dataset=...`: Audiostock and Epidemic Sound are bought or by
    subscription, AudioSet has to be downloaded from its videos. The paper's 300 hours of LibriTTS
    are a part that it does not name; here it is all of its training splits.
    """
    config = full()
    captions = "clotho", "audiocaps", "macs", "wavtext5k", "bbc_sound_effects", "audiostock"
    labels = (
        *("audioset", "esc50", "fsd50k", "sonniss", "wesoundeffects", "epidemic_sound"),
        "urbansound8k",
    )
    neither = "libritts", "medley_solos_db"
    config.data.dataset = " + ".join(
        [*captions, *(f"enhanced/{name}" for name in (*labels, *neither))]
    )
    config.data.eval_dataset = "audiocaps"
    # Recordings with one label; the paper compares captions on these three (Table 5).
    config.data.reprogram.events = "fsd50k + esc50 + urbansound8k"
    return config


def row(text_encoder: str):
    """Returns a row of Table 1, where the U-Net's context is as wide as the encoder's states."""
    config = full()
    config.text_encoder = text_encoder
    config.unet.cross_attention_dim = {"clap": 1024, "t5": 1024, "bert": 1024, "clip": 768}[
        text_encoder
    ]
    return config


def bundled():
    """The U-Net of the model in the package, 4,718,552 parameters, which predicts v.

    A fifth of the examples are joined to an event.
    """
    config = common.small_run(full(), steps=15_000)
    common.bundled_data(config, weight=25)
    config.data.samples = 65_536
    config.data.reprogram.events = "general_midi/40000x4.1 + sonic_sounds*25"
    config.data.reprogram.n_events = (4.0, 1.0, 0.0)
    config.batch_size = 32
    config.ema_decay = 0.999
    config.uncond_probability = 0.1
    config.eval_draws = 4
    config.schedule.prediction_type = "v_prediction"
    config.unet.in_channels = config.unet.out_channels = 8  # the latents' of the package
    config.unet.block_out_channels = (48, 144)
    config.unet.layers_per_block = 1
    config.unet.num_heads = 2
    config.unet.cross_attention_dim = 128
    config.unet.norm_num_groups = 8
    config.optimizer.base_lr = 1e-3
    config.optimizer.warmup_steps = 200
    config.optimizer.cosine_steps = config.total_steps
    config.optimizer.clip_norm = 1.0
    return config


def demo():
    config = common.demo_run(bundled(), steps=100)
    config.data.reprogram.events = ""
    config.data.reprogram.n_events = (1.0, 1.0, 1.0)
    config.batch_size = 6
    config.noise_draws = 4
    config.ema_decay = 0.995
    config.eval_draws = 16
    config.optimizer.warmup_steps = 20
    return config


def runlocal():
    config = common.local_run(bundled(), steps=2)
    config.data.reprogram.events = ""
    config.data.reprogram.n_events = (1.0, 1.0, 1.0)
    config.schedule.prediction_type = "epsilon"
    config.optimizer.warmup_steps = 100
    config.batch_size = 2
    config.data.samples = 8_192
    config.autoencoder = config.text_encoder = "bundled"
    config.eval_draws = 2
    config.unet.block_out_channels = (16, 16)
    config.summary.prompts = config.summary.prompts[:1]
    return config
