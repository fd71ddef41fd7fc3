"""Model folders from runs and from released files, and released files from model folders."""

import dataclasses
import pathlib
from typing import Any

from maa_jax.files import make_folder, user_path


def workdir_to_folder(
    workdir: str, out: str, *, step: int | None = None, ema: bool = True, dtype: str = "float32"
) -> pathlib.Path:
    """Writes the networks of a run into a model folder.

    Args:
      workdir: folder of a run of maa_jax.train.
      out: path of the model folder; parts that this stage does not train are left as they are.
      step: step of the checkpoint; the latest by default.
      ema: whether to write the moving average, where one is kept, instead of the last weights.
      dtype: storage type of the weights, "float32" or "float16".

    Returns:
      The path of the model folder.

    Raises:
      FileNotFoundError: there is no run in the workdir.
      ValueError: there is no such checkpoint.
    """
    # Imported after the flags are parsed, so that --help and mistakes in them are answered at once.
    import jax

    from maa_jax.model_folder import networks
    from maa_jax.model_folder.index import networks_in
    from maa_jax.stages import make_stage
    from maa_jax.training.checkpoint import Checkpoints, read_config, read_tokenizer

    stage = make_stage(read_config(workdir), tokenizer=read_tokenizer(workdir))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        jax.eval_shape(stage.init, jax.random.key(0)),
    )
    with Checkpoints(workdir) as checkpoints:
        steps = checkpoints.all_steps()
        if not steps:
            raise ValueError(
                f"--workdir={workdir} holds no finished checkpoint; train on until the first"
            )
        step = steps[-1] if step is None else step
        if step not in steps:
            raise ValueError(f"--step={step}: --workdir={workdir} holds {steps}")
        folder = make_folder(user_path(out))
        state = checkpoints.restore(step, shapes)
    stage.export(state.weights() if ema else state.params, state.extra, folder)
    if dtype != "float32":
        for name in networks_in(folder):
            _, params = networks.load_network(folder, name)
            networks.save_network(folder, name, networks.load_config(folder, name), params, dtype)
    return folder


def released_to_folder(
    out: str,
    *,
    checkpoint: str | None = None,
    vocoder: str | None = None,
    vocoder_log: str = "log10",
    clap: str | None = None,
    tokenizer: str = "bert-base-uncased",
    dtype: str = "float32",
) -> pathlib.Path:
    """Writes released networks into a model folder, one after another.

    The text encoder is the checkpoint's own. The release never loads the CLAP file into it, so the
    two may differ; whether they do is printed where both are given.

    Args:
      out: path of the model folder.
      checkpoint: path of `maa1_full.ckpt`; without it, only the vocoder is converted.
      vocoder: folder of a released BigVGAN or HiFi-GAN.
      vocoder_log: logarithm of the mels that the vocoder was trained on, "log10" or "log".
      clap: path of `CLAP_weights_2022.pth`, whose audio tower ranks and scores sounds.
      tokenizer: folder or hub id of the text encoder's tokenizer.
      dtype: storage type of the weights, "float32" or "float16".

    Returns:
      The path of the model folder.

    Raises:
      ValueError: a file is missing, refused or of another layout.
    """
    from maa_jax.audio.mel import MelConfig
    from maa_jax.convert import clap as clap_names
    from maa_jax.convert import released, vocoders
    from maa_jax.model_folder import hub, networks, torch_layout
    from maa_jax.model_folder.index import save_index, save_scheduler
    from maa_jax.models.clap import ClapConfig
    from maa_jax.text.tokenizer import Tokenizer

    if not checkpoint and not vocoder:
        raise ValueError("nothing to convert: give --checkpoint, --vocoder or both")
    folder, mel = pathlib.Path(user_path(out)), MelConfig(log=vocoder_log)
    if checkpoint and vocoder and vocoder_log != MelConfig().log:
        raise ValueError(
            f"--vocoder_log={vocoder_log}: the checkpoint's mels are base-10, which a vocoder of "
            "natural logarithms cannot take. Convert it separately, without --checkpoint"
        )
    tokenizer_found = None
    if checkpoint:
        tokenizer_found = Tokenizer.from_folder(hub.fetch(tokenizer, ("tokenizer.json",)))

    def save(name: str, config: Any, tensors: dict) -> None:
        params = torch_layout.from_torch(networks.abstract(config), tensors)
        networks.save_network(folder, name, config, params, dtype)
        print(f"Wrote {folder / name}", flush=True)

    if checkpoint and tokenizer_found:
        content = released.read_pickle(user_path(checkpoint))
        state = released.numpy_tensors(content.get("state_dict", content))
        parts = released.from_checkpoint(state)
        scale = float(state.get("scale_factor", 1.0))
        text, projection = released.text_configs(parts["text_encoder"], parts["text_projection"])
        towers = clap and clap_names.from_released(
            released.numpy_tensors(released.read_pickle(user_path(clap))["model"])
        )
        save("unet", released.unet_config(parts["unet"]), parts.pop("unet"))
        save("vae", released.autoencoder_config(parts["vae"], scale), parts.pop("vae"))
        save("text_encoder", text, parts["text_encoder"])
        save("text_projection", projection, parts["text_projection"])
        tokenizer_found.save(folder / "tokenizer")
        save_scheduler(folder, released.schedule_of(state))
        if towers:
            config = dataclasses.replace(
                ClapConfig.microsoft_2022(), embedding_size=projection.out_size
            )
            save("audio_encoder", config.audio_encoder, towers["audio_encoder"])
            save("audio_projection", config.audio_projection, towers["audio_projection"])
            print(_compared(parts, towers), flush=True)
    if vocoder:
        config, tensors = vocoders.read_vocoder(user_path(vocoder), log=vocoder_log)
        params = vocoders.folded(networks.abstract(config), tensors)
        networks.save_network(folder, "vocoder", config, params, dtype)
        print(f"Wrote {folder / 'vocoder'}", flush=True)
    whole = dict(max_duration=624 * mel.hop_length / mel.sample_rate) if checkpoint else {}
    save_index(folder, mel=dataclasses.asdict(mel), sample_rate=mel.sample_rate, **whole)
    return folder


def _compared(parts: dict, towers: dict) -> str:
    """Returns a sentence on whether the checkpoint's text tower is that of the CLAP file."""
    import numpy as np

    different = [
        f"{network}.{name}"
        for network in ("text_encoder", "text_projection")
        for name, value in parts[network].items()
        if not np.array_equal(value, towers[network].get(name))
    ]
    if not different:
        return "The checkpoint's text encoder is that of the CLAP file."
    return (
        f"The checkpoint's text encoder differs from the CLAP file's in {len(different)} tensors, "
        f"{different[0]} the first; the checkpoint's is kept."
    )


def folder_to_released(model: str, out: str) -> pathlib.Path:
    """Writes a model folder in the release's layout: a checkpoint, and its vocoder beside it.

    Args:
      model: path of the model folder, or "bundled".
      out: path of the checkpoint to write; the vocoder is written into the folder `bigvgan` or
        `hifigan` beside it.

    Returns:
      The path of the checkpoint.

    Raises:
      ValueError: there is no such folder, or its text encoder is not a CLAP's.
    """
    import numpy as np
    import torch

    from maa_jax.convert import released, vocoders
    from maa_jax.files import replace_file
    from maa_jax.model_folder import hub, networks, torch_layout
    from maa_jax.model_folder.index import load_scheduler
    from maa_jax.models.bigvgan import BigVGANConfig

    folder, out = hub.resolve(model), pathlib.Path(user_path(out))
    names = ("unet", "vae", "text_encoder", "text_projection")
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing:
        raise ValueError(
            f"--model={model}: no {', '.join(missing)}; the release's layout holds a denoiser "
            "conditioned by a CLAP"
        )
    scale = networks.load_config(folder, "vae").scaling_factor
    schedule = load_scheduler(folder)
    parts = {n: torch_layout.to_torch(networks.load_network(folder, n)[1]) for n in names}
    tensors = released.to_checkpoint(parts, schedule, scale)
    state = {name: torch.from_numpy(np.asarray(value)) for name, value in tensors.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(out) as new:
        torch.save({"state_dict": state}, new)
    if (folder / "vocoder").is_dir():
        config = networks.load_config(folder, "vocoder")
        kind = "bigvgan" if isinstance(config, BigVGANConfig) else "hifigan"
        params = networks.load_network(folder, "vocoder")[1]
        vocoders.write_vocoder(out.parent / kind, config, params)
        print(f"Wrote {out.parent / kind}", flush=True)
    return out
