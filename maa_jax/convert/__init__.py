"""Model folders from training runs and released checkpoints, and back."""
