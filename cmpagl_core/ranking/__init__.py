"""Score matrices and their re-rankings: matrices in, matrices out; ITM alone runs a model (method, section 4)."""
