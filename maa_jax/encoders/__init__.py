"""Frozen encoders: from sentences and sounds to conditions and embeddings."""
