"""Re-rankings that need no training: matrices in, matrices out (method, section 4)."""
