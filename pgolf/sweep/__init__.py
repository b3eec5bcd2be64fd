"""Sweeps: a declared grid of parameters, run row by row, and what its rows say."""
