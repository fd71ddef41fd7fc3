"""Prompt enhancement: experts propose captions for sounds, CLAP chooses (paper section 3.2.1)."""
