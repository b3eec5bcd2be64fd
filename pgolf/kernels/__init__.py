"""Triton kernels for the training step, each with a plain twin in the tests."""
