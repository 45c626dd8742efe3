"""Scores of label maps, and how they add up while training."""
