"""Convolutions and attention for each kind of processor: the only place that knows any."""
