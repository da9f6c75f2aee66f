"""Scores, re-ranking, indexes and search."""
