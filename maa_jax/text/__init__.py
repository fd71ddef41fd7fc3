"""Sentences: normalisation, tokens, and how much two of them share."""
