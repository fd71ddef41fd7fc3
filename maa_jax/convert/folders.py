"""Model folders from runs and from released files, and released files from model folders."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from maa_jax.files import (
    lock,
    make_folder,
    replace_file,
    replace_folder,
    temporary_folder,
    user_path,
)

if TYPE_CHECKING:
    from maa_jax.convert import released
    from maa_jax.diffusion.schedule import Schedule
    from maa_jax.text.tokenizer import Tokenizer


def workdir_to_folder(
    workdir: str, out: str, *, step: int | None = None, ema: bool = True, dtype: str = "float32"
) -> pathlib.Path:
    """Writes the networks of a run into a model folder.

    Args:
      workdir: folder of a run of maa_jax.train.
      out: path of the model folder; parts that this stage does not train are left as they are.
      step: step of the checkpoint; the latest whole one by default.
      ema: whether to write the moving average, where one is kept, instead of the last weights.
      dtype: storage type of the weights, "float32" or "float16".

    Returns:
      The path of the model folder.

    Raises:
      FileNotFoundError: there is no run in the workdir.
      ValueError: there is no such checkpoint, or it is broken.
    """
    # Imported after the flags are parsed, so that --help and mistakes in them are answered at once.
    from maa_jax.model_folder import networks
    from maa_jax.model_folder.index import load_index, networks_in, save_index
    from maa_jax.stages.export import restored
    from maa_jax.training.workdir_files import read_training_data

    stage, state = restored(workdir, step)
    with _model_folder(out) as folder:
        stage.export(state.weights() if ema else state.params, state.extra, folder)
        if "data" in load_index(folder):
            # By these evaluation knows what the model was trained on, whatever its name.
            save_index(folder, digests=read_training_data(workdir))
        if dtype != "float32":
            for name in networks_in(folder):
                _, params = networks.load_network(folder, name)
                kind = networks.load_config(folder, name)
                networks.save_network(folder, name, kind, params, dtype)
    return pathlib.Path(user_path(out))


@contextlib.contextmanager
def _model_folder(out: str) -> Iterator[pathlib.Path]:
    """Yields an empty folder whose parts become those of the model folder `out`, all or none.

    Parts that it does not hold, and the user's files, stay. `out` is held by this process alone.

    Raises:
      ValueError: `out` cannot be written, or another process converts into it.
    """
    from maa_jax.model_folder.index import merge_folder

    new = not os.path.exists(user_path(out))
    folder = make_folder(user_path(out))
    try:
        with lock(folder), temporary_folder(folder) as parts:
            yield parts
            merge_folder(parts, folder)
    except BaseException:
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()  # which is empty, unless parts were merged
        raise


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
      checkpoint: path of `maa1_full.ckpt`, or of the authors' image model, which has a CLIP and its
        tokenizer, `ta54_epoch=000216.ckpt`; without it, only the vocoder is converted.
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
    from maa_jax.convert import vocoders
    from maa_jax.model_folder import networks, torch_layout
    from maa_jax.model_folder.index import save_index, save_scheduler
    from maa_jax.models.clip import ClipConfig

    if not checkpoint and not vocoder:
        raise ValueError("nothing to convert: give --checkpoint, --vocoder or both")
    if clap and not checkpoint:
        raise ValueError("--clap: it goes with --checkpoint, whose text encoder it belongs to")
    mel = MelConfig(log=vocoder_log)
    if checkpoint and vocoder and vocoder_log != MelConfig().log:
        raise ValueError(
            f"--vocoder_log={vocoder_log}: the checkpoint's mels are base-10, which a vocoder of "
            "natural logarithms cannot take. Convert it separately, without --checkpoint"
        )
    # All files are read and checked before anything is written.
    parts: dict[str, released.Network] = {}
    schedule = words = None
    visual = False
    if checkpoint:
        parts, schedule = _read_checkpoint(checkpoint)
        text = parts["text_encoder"][0]
        visual = isinstance(text, ClipConfig)
        words = _read_tokenizer(tokenizer, text.text_config if visual else text)
        if clap and visual:
            raise ValueError(f"--clap: {checkpoint} has a CLIP and no CLAP; leave it out")
        if clap:
            parts |= _read_clap(clap, parts)
    if vocoder:
        config, tensors = vocoders.read_vocoder(user_path(vocoder), mel)
        parts["vocoder"] = dataclasses.replace(config, mel=mel), tensors

    with _model_folder(out) as folder:
        for name in [*parts]:
            config, tensors = parts.pop(name)
            params = torch_layout.from_torch(networks.define(config)[1], tensors)
            networks.save_network(folder, name, config, params, dtype)
            print(f"Converted {name}", flush=True)
        if words and schedule:
            words.save(folder / "tokenizer")
            save_scheduler(folder, schedule)
        whole: dict[str, Any] = {}
        if checkpoint:
            whole["max_duration"] = 624 * mel.hop_length / mel.sample_rate
            whole["conditioning"] = "norm_global" if visual else "tokens"
        save_index(folder, mel=dataclasses.asdict(mel), sample_rate=mel.sample_rate, **whole)
    return pathlib.Path(user_path(out))


def _read_checkpoint(path: str) -> "tuple[dict[str, released.Network], Schedule]":
    """Returns the networks and the schedule of a released checkpoint."""
    from maa_jax.convert import released, torch_files

    state = torch_files.read_tensors(user_path(path))
    try:
        return released.from_checkpoint(state), released.schedule_of(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_tokenizer(name: str, text: Any) -> "Tokenizer":
    """Returns the tokenizer of a text encoder."""
    from maa_jax.model_folder import hub
    from maa_jax.text.tokenizer import Tokenizer

    found = Tokenizer.from_folder(hub.fetch(name, ("tokenizer.json",)))
    if found.vocab_size > text.vocab_size:
        raise ValueError(
            f"--tokenizer={name}: it has {found.vocab_size} entries, but the checkpoint's text "
            f"encoder {text.vocab_size}; give the tokenizer that it was trained with"
        )
    return found


def _read_clap(path: str, parts: "dict[str, released.Network]") -> "dict[str, released.Network]":
    """Returns the audio tower of a released CLAP, and prints how its text tower differs."""
    from maa_jax.convert import clap, released, torch_files
    from maa_jax.models.clap import ClapConfig

    size = parts["text_projection"][0].out_size
    config = dataclasses.replace(ClapConfig.microsoft_2022(), embedding_size=size)
    tensors = torch_files.read_tensors(user_path(path), "model")
    try:
        towers = clap.from_released(tensors)
        audio = {
            name: (getattr(config, name), towers.get(name, {}))
            for name in ("audio_encoder", "audio_projection")
        }
        problems = [
            problem
            for name, (sizes, given) in audio.items()
            for problem in released.misfits(sizes, given, clap.PREFIXES[name])
        ]
        if problems:
            raise ValueError(f"not a CLAP of 2022: {torch_files.listed(problems)}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    print(_compared({name: tensors for name, (_, tensors) in parts.items()}, towers), flush=True)
    return audio


def _compared(parts: dict, towers: dict) -> str:
    """Returns a sentence on whether the checkpoint's text tower is that of the CLAP file."""
    import numpy as np

    different = [
        f"{network}.{name}"
        for network in ("text_encoder", "text_projection")
        for name, value in parts[network].items()
        if not np.array_equal(value, towers.get(network, {}).get(name))
    ]
    if not different:
        return "The checkpoint's text encoder is that of the CLAP file."
    return (
        f"The checkpoint's text encoder differs from the CLAP file's in {len(different)} tensors, "
        f"{different[0]} the first; the checkpoint's is kept."
    )


def open_clip_to_folder(
    out: str,
    *,
    checkpoint: str,
    quick_gelu: bool = False,
    tokenizer: str = "openai/clip-vit-large-patch14",
    dtype: str = "float32",
) -> pathlib.Path:
    """Writes an OpenCLIP with both towers into a model folder, as `text_encoder` and `tokenizer`.

    Args:
      out: path of the model folder.
      checkpoint: path of its file, such as open_clip_model.safetensors.
      quick_gelu: whether the activation is OpenAI's, as open_clip_config.json states.
      tokenizer: folder or hub id of its tokenizer, the same for all of OpenAI's and OpenCLIP's.
      dtype: storage type of the weights, "float32" or "float16".

    Returns:
      The path of the model folder.

    Raises:
      ValueError: a file is missing, refused or of another layout.
    """
    from maa_jax.convert import open_clip, released, torch_files
    from maa_jax.model_folder import networks, torch_layout
    from maa_jax.model_folder.index import save_index

    state = torch_files.read_tensors(user_path(checkpoint))
    try:
        config = open_clip.clip_sizes(state, quick_gelu)
        tensors = open_clip.clip_from_open_clip(state)
        if problems := released.misfits(config, tensors):
            raise ValueError(f"not an OpenCLIP: {torch_files.listed(problems)}")
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}") from error
    words = _read_tokenizer(tokenizer, config.text_config)
    with _model_folder(out) as folder:
        params = torch_layout.from_torch(networks.define(config)[1], tensors)
        networks.save_network(folder, "text_encoder", config, params, dtype)
        words.save(folder / "tokenizer")
        save_index(folder)
    return pathlib.Path(user_path(out))


def classifier_to_folder(
    out: str, *, checkpoint: str, mel_statistics: str = "", dtype: str = "float32"
) -> pathlib.Path:
    """Writes a released classifier of sounds into a model folder, as `audio_classifier`.

    Args:
      out: path of the model folder.
      checkpoint: path of the file of a Melception, a Cnn14 or a VGGish; see `read_classifier`.
      mel_statistics: for a Melception, the file with the statistics of its mel bins.
      dtype: storage type of the weights, "float32" or "float16"; rounded weights do not count as
        the published ones.

    Returns:
      The path of the model folder.

    Raises:
      ValueError: a file is missing, refused or of another layout.
    """
    from maa_jax.convert import classifiers
    from maa_jax.model_folder import networks, torch_layout
    from maa_jax.model_folder.index import save_index

    config, tensors = classifiers.read_classifier(checkpoint, mel_statistics)
    if dtype != "float32":
        config = dataclasses.replace(config, published=None)
    known = f"the published {config.published}" if config.published else "no published weights"
    print(f"{checkpoint}: a {type(config).__name__.removesuffix('Config')}, {known}", flush=True)
    with _model_folder(out) as folder:
        params = torch_layout.from_torch(networks.define(config)[1], tensors)
        networks.save_network(folder, "audio_classifier", config, params, dtype)
        save_index(folder)
    return pathlib.Path(user_path(out))


def folder_to_released(model: str, out: str) -> pathlib.Path:
    """Writes a model folder in the release's layout: a checkpoint, and its vocoder beside it.

    Args:
      model: path of the model folder, or "bundled".
      out: path of the checkpoint to write; the vocoder is written into the folder `bigvgan` or
        `hifigan` beside it, and the tokenizer into `tokenizer`.

    Returns:
      The path of the checkpoint.

    Raises:
      ValueError: there is no such folder, its text encoder is not a CLAP's, or it has sizes or
        settings that the release's layout cannot hold.
    """
    import numpy as np
    import torch

    from maa_jax.audio.mel import MelConfig
    from maa_jax.convert import released, vocoders
    from maa_jax.model_folder import hub, networks, torch_layout
    from maa_jax.model_folder.index import front_end, load_scheduler
    from maa_jax.models.bigvgan import BigVGANConfig

    folder, path = hub.resolve(model), pathlib.Path(user_path(out))
    names = ("unet", "vae", "text_encoder", "text_projection")
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing:
        raise ValueError(
            f"--model={model}: no {', '.join(missing)}; the release's layout holds a denoiser "
            "conditioned by a CLAP"
        )
    try:
        released.check_same("mel", front_end(folder, "vae"), MelConfig())
        configs = {name: networks.load_config(folder, name) for name in names}
        parts = {n: torch_layout.to_torch(networks.load_network(folder, n)[1]) for n in names}
        for name in names:
            try:
                read = released.sizes_of(name, parts[name])
            except ValueError as error:
                raise ValueError(
                    f"{name}: the released layout cannot hold it: its tensors would be read as "
                    f"another network ({error})"
                ) from error
            released.check_same(name, configs[name], read)
        scale = configs["vae"].scaling_factor
        tensors = released.to_checkpoint(parts, load_scheduler(folder), scale)
    except ValueError as error:
        raise ValueError(f"--model={model}: {error}") from error
    state = {name: torch.from_numpy(np.asarray(value)) for name, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if (folder / "vocoder").is_dir():
        config = networks.load_config(folder, "vocoder")
        kind = "bigvgan" if isinstance(config, BigVGANConfig) else "hifigan"
        params = networks.load_network(folder, "vocoder")[1]
        vocoders.write_vocoder(path.parent / kind, config, params)
        print(f"Wrote {path.parent / kind}", flush=True)
    if (folder / "tokenizer").is_dir():
        with replace_folder(path.parent / "tokenizer") as new:
            shutil.copytree(folder / "tokenizer", new, dirs_exist_ok=True)
        print(f"Wrote {path.parent / 'tokenizer'}", flush=True)
    with replace_file(path) as new:
        torch.save({"state_dict": state}, new)
    return path
