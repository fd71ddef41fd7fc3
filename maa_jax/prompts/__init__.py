"""Prompt enhancement: captions for sound that has none, and new combinations of both."""
