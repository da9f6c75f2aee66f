"""Where a model looked: fusion cross-attention for each word, and local against global windows for each stage."""
