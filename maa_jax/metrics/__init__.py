"""Metrics of sounds from the features and logits of networks, in float64 and numpy alone."""
