"""The Hugging Face model folder: found, read, written, described."""
