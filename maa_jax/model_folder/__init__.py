"""Model folders in Hugging Face's layout: finding, reading, writing and describing them."""
