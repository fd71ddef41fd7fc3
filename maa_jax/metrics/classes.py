"""Scores from the logits of a classifier: KL and inception score."""

from typing import Literal

import numpy as np

from maa_jax.checks import check_name
from maa_jax.metrics.base import Spread, check_lengths, checked, checked_pair

KL_FORMS = ("softmax", "sigmoid")
_KL_EPS = 1e-6  # SpecVQGAN's, which all tools took over


def kl_divergence(
    reference: np.ndarray, evaluated: np.ndarray, *, form: Literal["softmax", "sigmoid"] = "softmax"
) -> np.ndarray:
    """Returns KL(reference || evaluated) of each clip, in nats; the score is the mean.

    It is the sum over classes of p (log p - log(q + 1e-6)), p and q of the reference and of the
    evaluated clip. Since q + 1e-6 adds up to more than 1, equal clips are slightly below 0.

    Agrees with `calculate_kl` of SpecVQGAN (evaluation/metrics/kl.py) and audioldm_eval
    (audioldm_eval/metrics/kl.py), both in float32, where features_2 is the reference. Tools that
    print KL(evaluated || reference), as stable-audio-metrics does (src/passt_kld.py), are this
    function with its arguments exchanged.

    Args:
      reference: logits of the recordings [n, classes].
      evaluated: logits of the sounds, row by row of the same clips. Where a recording has several
        sounds, repeat its row.
      form: "softmax", over all logits; or "sigmoid", in which each class is a probability of its
        own, which audioldm_eval prints as well.

    Returns:
      Divergences, float64 [n].

    Raises:
      ValueError: the logits are not finite, or do not pair.
    """
    reference, evaluated = checked_pair(("reference", "evaluated"), reference, evaluated)
    check_lengths(reference=len(reference), evaluated=len(evaluated))
    check_name("form", form, KL_FORMS)
    log = _log_softmax if form == "softmax" else _log_sigmoid
    log_p, log_q = log(reference), log(evaluated)
    return np.sum(np.exp(log_p) * (log_p - np.log(np.exp(log_q) + _KL_EPS)), axis=1)


def inception_score(logits: np.ndarray, *, splits: int = 10, seed: int = 2020) -> Spread:
    """Returns exp of the mean KL between a clip's classes and those of its split.

    Agrees with `isc_features_to_metric` of torch-fidelity (torch_fidelity/metric_isc.py), SpecVQGAN
    and audioldm_eval (metrics/isc.py). A class whose probability underflows in a whole split makes
    theirs NaN; it counts nothing here.

    Args:
      logits: logits [n, classes]; SpecVQGAN's are those without the bias.
      splits: number of parts of equal size, 1 to n, that are scored apart.
      seed: seed of the order in which clips are divided into them.

    Raises:
      ValueError: the logits are not finite, or fewer than the splits.
    """
    logits = checked("logits", logits)
    n = len(logits)
    if not 1 <= splits <= n:
        raise ValueError(f"splits={splits}, n={n}: give 1 to n splits")
    order = np.random.RandomState(seed).permutation(n)  # the tools' generator
    log_p = _log_softmax(logits[order])
    scores = []
    for i in range(splits):
        part = log_p[i * n // splits : (i + 1) * n // splits]
        log_mean = np.logaddexp.reduce(part, axis=0) - np.log(len(part))
        scores.append(float(np.exp(np.mean(np.sum(np.exp(part) * (part - log_mean), axis=1)))))
    return Spread.of(scores)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(1, keepdims=True).astype(np.float64)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def _log_sigmoid(logits: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0, -logits.astype(np.float64))
