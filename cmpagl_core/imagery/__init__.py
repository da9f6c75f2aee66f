"""What an image is and how its pixels are read."""
