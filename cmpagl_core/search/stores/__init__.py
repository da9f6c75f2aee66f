"""Sets of features that can be searched: exact and memory-mapped, or by an int8 copy of them."""
