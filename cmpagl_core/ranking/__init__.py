"""Score matrices and re-rankings: matrices in, matrices out; only ITM runs a model (section 4)."""
