"""The mathematics of diffusion: noise schedules and samplers.

The choices of options are defined here, so that they can be read without importing JAX.
"""

SAMPLERS = ("ddim", "plms", "dpmpp_2m")
SPACINGS = ("ldm", "leading", "trailing", "linspace")
BETA_SCHEDULES = ("scaled_linear", "linear")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
