"""Scores: one file each."""
