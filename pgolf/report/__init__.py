"""Curves and pictures of a run."""
