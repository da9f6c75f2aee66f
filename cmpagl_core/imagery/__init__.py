"""Images: finding, checking and decoding them."""
