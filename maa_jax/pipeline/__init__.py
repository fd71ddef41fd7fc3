"""Text to sound with a trained model."""
