"""Recall under a stated protocol, with ties, intervals and guards."""
