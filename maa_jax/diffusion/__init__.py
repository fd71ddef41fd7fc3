"""The mathematics of diffusion: schedules, samplers and editing."""
