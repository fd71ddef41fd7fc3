"""Sound: decoding, resampling, writing, and the mel front end."""
