"""Fast variants of the model's layers for CPU and CUDA, each equal to its plain layer; `use_kernels` swaps them in."""
