"""PyTorch layouts: names and transposes, both ways."""
