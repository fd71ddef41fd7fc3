"""Frozen networks ready for use: sentences and sounds to conditions and embeddings."""
