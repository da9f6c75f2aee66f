"""Seeded aerial-like scenes drawn by our own code, whose objects, counts, colours and relations are known (ours)."""
