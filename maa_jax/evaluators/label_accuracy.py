"""Whether generated sounds are of the class that their prompts name.

Each sound is compared with the split's recordings: is the nearest one of a right label (top 1), is
one of the five nearest (top 5)? Nearness is measured twice, by a CLAP's audio tower and by plain
log-mel statistics, which no network of the model could have been trained to please.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.experimental import multihost_utils

from maa_jax.audio.mel import MelConfig, log_mel
from maa_jax.data import datasets, input_pipeline
from maa_jax.data.config import DataConfig
from maa_jax.model_folder import hub, networks
from maa_jax.models.clap import unit_length

BATCH = 8
TOPS = (1, 5)


def run(
    pipeline: Any,
    data: DataConfig | Mapping[str, Any],
    *,
    num_prompts: int = 0,
    captions_per_recording: int = 1,
    clap: str = "bundled",
    steps: int = 100,
    guidance_scale: float = 3.0,
    seed: int = 0,
    keep: Callable[[int, str, np.ndarray], None] | None = None,
) -> Iterator[tuple[str, float]]:
    """Generates a sound for each caption of `data.split` and scores it.

    Every process of a run takes a part of the prompts; a sound does not depend on how many there
    are.

    Args:
        pipeline: a `Pipeline`.
        data: the dataset; its recordings need labels. `samples` is replaced by the model's limit.
        num_prompts: prompts taken, evenly over the captions; 0 for all.
        captions_per_recording: captions of a recording that become prompts; 0 for all.
        clap: the model folder whose audio tower measures, or "bundled".
        steps: DDIM steps.
        guidance_scale: of the sampling.
        seed: of the noise.
        keep: called with (number, prompt, wav [samples]) for each sound made by this process.

    Yields:
        (name, value), for FEATURES in "clap" and "log_mel" and K in 1 and 5:
        "FEATURES/top_K", the share of sounds with a right recording among the K nearest;
        "FEATURES/top_K_recordings", the same of the recordings, each with itself left out;
        "top_K_chance", what K recordings drawn at random would score; and "prompts", their number.

    Raises:
        ValueError: recordings without labels, or a setting out of range.
    """
    if num_prompts < 0 or captions_per_recording < 0:
        raise ValueError(
            f"num_prompts={num_prompts}, captions_per_recording={captions_per_recording}: "
            "give 0 (all) or more."
        )
    data = DataConfig.of(data)
    meta = datasets.metadata(data)
    unlabelled = [example["id"] for example in meta if not example["labels"]]
    if unlabelled:
        raise ValueError(
            f"{len(unlabelled)} recordings of split {data.split!r} have no label, such as "
            f"{unlabelled[0]!r}: label accuracy needs a dataset with labels."
        )
    features = {
        "clap": clap_features(clap, pipeline.sample_rate),
        "log_mel": jax.jit(functools.partial(mel_features, sample_rate=pipeline.sample_rate)),
    }
    prompts = choose_prompts(meta, captions_per_recording, num_prompts)
    labels = [set(example["labels"]) for example in meta]
    right = np.array([[bool(a & b) for b in labels] for a in labels])  # [recordings, recordings]
    of_prompts = right[[recording for recording, _ in prompts]]  # [prompts, recordings]

    samples = round(pipeline.max_duration * pipeline.sample_rate)
    recorded = _extract(features, _recordings(data, samples))
    generated = _extract(
        features,
        _generate(
            pipeline,
            [caption for _, caption in prompts],
            keep=keep,
            steps=steps,
            guidance_scale=guidance_scale,
            seed=seed,
        ),
    )
    yield "prompts", float(len(prompts))
    for k in TOPS:
        yield f"top_{k}_chance", chance(of_prompts, k)
    for name in features:
        ours, theirs = _gather(generated[name]), recorded[name]
        if name == "log_mel":  # its dimensions differ in spread
            mean, spread = theirs.mean(0), theirs.std(0) + 1e-6
            ours, theirs = (ours - mean) / spread, (theirs - mean) / spread
        distances = _distances(theirs, theirs)
        np.fill_diagonal(distances, np.inf)
        for k in TOPS:
            yield f"{name}/top_{k}", top(_distances(ours, theirs), of_prompts, k)
            yield f"{name}/top_{k}_recordings", top(distances, right, k)


def choose_prompts(meta: list[dict], per_recording: int, count: int) -> list[tuple[int, str]]:
    """Returns (recording's index, caption), evenly chosen; 0 takes all of either."""
    prompts = [
        (index, caption)
        for index, example in enumerate(meta)
        for caption in example["captions"][: per_recording or None]
    ]
    if not count or count >= len(prompts):
        return prompts
    return [prompts[i] for i in np.arange(count) * len(prompts) // count]


def top(distances: np.ndarray, right: np.ndarray, k: int) -> float:
    """Returns the share of rows with a right column among the k nearest.

    Args:
        distances: [n, recordings].
        right: [n, recordings], True where the recording has a right label.
        k: how many count.
    """
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return float(np.take_along_axis(right, nearest, axis=1).any(axis=1).mean())


def chance(right: np.ndarray, k: int) -> float:
    """Returns `top` of k different recordings drawn at random, exactly."""
    n = right.shape[1]
    k = min(k, n)
    misses = [math.comb(n - int(hits), k) / math.comb(n, k) for hits in right.sum(axis=1)]
    return 1 - float(np.mean(misses))


def clap_features(model: str, sample_rate: int) -> Callable[[jax.Array], jax.Array]:
    """Returns a function of wavs [b, samples] to unit-length embeddings [b, d].

    Args:
        model: a model folder with `audio_encoder` and `audio_projection`, or "bundled".
        sample_rate: of the wavs; the tower's own.
    """
    folder = hub.resolve(model)
    config = networks.load_config(folder, "audio_encoder")
    if config.sample_rate != sample_rate:
        raise ValueError(
            f"clap={model!r} hears sound at {config.sample_rate} Hz, and this model makes it at "
            f"{sample_rate} Hz: name a CLAP of the same rate."
        )
    graphs, params = {}, {}
    for name in ("audio_encoder", "audio_projection"):
        graphs[name], params[name] = networks.load_network(folder, name)

    @jax.jit
    def embed(params, wavs):
        missing = config.min_samples - wavs.shape[1]
        wavs = jnp.pad(wavs, ((0, 0), (0, max(0, missing))))
        hidden = networks.build(graphs["audio_encoder"], params["audio_encoder"])(wavs)["embedding"]
        head = networks.build(graphs["audio_projection"], params["audio_projection"])
        return unit_length(head(hidden))

    return functools.partial(embed, jax.device_put(params))


def mel_features(wavs: jax.Array, *, sample_rate: int) -> jax.Array:
    """Returns mean and standard deviation over time of log mels, [b, 2 * n_mels]."""
    mel = log_mel(wavs, MelConfig(sample_rate=sample_rate, fmax=sample_rate / 2))
    return jnp.concatenate([mel.mean(axis=1), mel.std(axis=1)], axis=1)


def _recordings(data: DataConfig, samples: int) -> Iterator[np.ndarray]:
    """Yields the split's recordings in order, [b, samples] each time."""
    evaluated = {"eval_dataset": data.dataset, "eval_split": data.split}
    config = {**vars(data), **evaluated, "samples": samples}
    for batch in input_pipeline.eval_batches(config, batch_size=BATCH):
        yield batch["audio"][batch["valid"]]


def _generate(pipeline: Any, prompts: list[str], *, keep, **settings) -> Iterator[np.ndarray]:
    """Yields this process's sounds in order, [b, samples] each time."""
    mine = np.array_split(np.arange(len(prompts)), jax.process_count())[jax.process_index()]
    with tqdm.tqdm(total=len(mine), desc="Sampling", unit="sound") as bar:
        for start in range(0, len(mine), BATCH):
            numbers = mine[start : start + BATCH]
            part = [prompts[i] for i in numbers]
            wavs = pipeline(part, start_index=int(numbers[0]), **settings)
            if keep is not None:
                for i, prompt, wav in zip(numbers, part, wavs, strict=True):
                    keep(int(i), prompt, wav)
            bar.update(len(part))
            yield wavs


def _extract(features: Mapping[str, Callable], batches) -> dict[str, np.ndarray]:
    """Returns {name: features [n, d]} of all batches; short ones are filled up to compile once."""
    rows = {name: [] for name in features}
    for wavs in batches:
        filled = np.zeros((BATCH, wavs.shape[1]), np.float32)
        filled[: len(wavs)] = wavs
        for name, function in features.items():
            rows[name].append(np.asarray(function(filled))[: len(wavs)])
    return {name: np.concatenate(r) if r else np.zeros((0, 0)) for name, r in rows.items()}


def _gather(rows: np.ndarray) -> np.ndarray:
    """Returns the rows of all processes, in order."""
    if jax.process_count() == 1:
        return rows
    shapes = multihost_utils.process_allgather(np.array(rows.shape))  # [processes, 2]
    most = shapes.max(axis=0)
    filled = np.zeros(most, np.float32)
    filled[: rows.shape[0], : rows.shape[1]] = rows
    parts = multihost_utils.process_allgather(filled)
    return np.concatenate([part[:n] for part, (n, _) in zip(parts, shapes, strict=True)])


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns squared Euclidean distances [len(a), len(b)]; cosine's order on unit lengths."""
    return np.square(a[:, None].astype(np.float64) - b[None]).sum(axis=-1)
