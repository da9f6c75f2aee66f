"""Trains a recipe with and without each claim of the paper, and tests the differences for significance."""
