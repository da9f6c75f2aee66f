"""Features of pictures and captions, as arrays and as safetensors files."""
