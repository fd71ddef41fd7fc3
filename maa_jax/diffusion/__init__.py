"""The mathematics of diffusion: schedules, samplers and editing.

The names that options offer stand here, where they can be read without importing JAX.
"""

SAMPLERS = ("ddim", "plms", "dpmpp_2m")
SPACINGS = ("ldm", "leading", "trailing", "linspace")
BETA_SCHEDULES = ("scaled_linear", "linear")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
