"""Text: normalisation, tokenizers, and the CIDEr-D score."""
