"""Scores of models, runs and folders of sounds, and the paper's tables of them."""
