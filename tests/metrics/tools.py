"""Values of the tools' own functions, which the metrics are compared with.

`metrics.npz` has features and logits, and what audioldm_eval and kadtk make of them in float32.
`metrics_tools.npz` has what the tools make of the same numbers in float64: torch-fidelity 0.4.0,
and the functions in audioldm_eval 8dc07ee, SpecVQGAN 33c601d, fadtk ec74b1f and kadtk 8bda71d, run
with torch 2.13.0 on a CPU, numpy 2.4.6 and scipy 1.17.1. CASE/TOOL/VALUE: KID with subsets of 100;
KL of the first 100 rows; kadtk/code with the bandwidth of features_2, kadtk/paper of features_1.
"few" is "wide" with 60 rows of 96. "frames" has features of its own, of which fadtk computed
FAD-infinity after numpy.random.seed(5), and the FAD of each 30 frames.
"""

import numpy as np

from tests.parity.named_weights import reference

CASES = "small", "wide"
FEATURES = reference("metrics")
TOOLS = reference("metrics_tools")


def features(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns features_1 and features_2, float32 [n, d]."""
    return FEATURES[f"{case}/features_1"], FEATURES[f"{case}/features_2"]


def logits(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits_1 and logits_2 of the same clips, float32 [n, classes]."""
    first, second = FEATURES[f"{case}/logits_1"], FEATURES[f"{case}/logits_2"]
    n = min(len(first), len(second))
    return first[:n], second[:n]
