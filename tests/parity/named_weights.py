"""Reference arrays and the deterministic weights that they were computed with.

Each `CASE.npz` beside this file holds the inputs and outputs of a reference PyTorch module, small
or of full size. Its weights derive from their names, so no weight file is needed: `shapes.json`
lists the names and shapes, `state_dict` makes the weights.
"""

import json
import pathlib
import zlib

import numpy as np

HERE = pathlib.Path(__file__).parent


def named_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the float32 weight that the reference used for `name`.

    Matrices and kernels are N(0, 1/fan_in). A weight-norm gain (weight_g) is 0.5 + 0.05 |N(0, 1)|
    and a running_var 1 + 0.05 |N(0, 1)|; a vector named weight or gamma is 1 + 0.05 N(0, 1); every
    other vector is 0.05 N(0, 1). Integers are zero.
    """
    leaf = name.rsplit(".", 1)[-1]
    if leaf in ("num_batches_tracked", "position_ids"):
        return np.zeros(shape, np.int64)
    rng = np.random.Generator(np.random.Philox(zlib.crc32(name.encode())))
    noise = rng.standard_normal(shape, dtype=np.float32)
    if leaf == "weight_g":  # weight-norm gain: one scalar for each output channel
        return np.float32(0.5) + 0.05 * np.abs(noise)
    if len(shape) >= 2:
        return noise / np.float32(np.sqrt(np.prod(shape[1:])))
    if leaf == "running_var":
        return 1 + 0.05 * np.abs(noise)
    if leaf in ("weight", "gamma"):
        return 1 + 0.05 * noise
    return 0.05 * noise


def state_dict(case: str) -> dict[str, np.ndarray]:
    """Returns {parameter name: float32 array} for a case listed in shapes.json."""
    shapes = json.loads((HERE / "shapes.json").read_text())[case]
    return {name: named_weight(name, tuple(shape)) for name, shape in shapes.items()}


def reference(case: str) -> dict[str, np.ndarray]:
    """Returns the inputs and the outputs that the reference computed for a case."""
    with np.load(HERE / f"{case}.npz") as arrays:
        return {name: arrays[name] for name in arrays}
