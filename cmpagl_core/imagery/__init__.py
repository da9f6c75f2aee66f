"""What an image is, and how it is found, checked and decoded."""
