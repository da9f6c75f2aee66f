"""Training a recipe with and without each claim of the paper, and telling differences from noise."""
