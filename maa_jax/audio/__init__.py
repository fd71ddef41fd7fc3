"""Audio: decoding, resampling, encoding, and the mel front end."""
