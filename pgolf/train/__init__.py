"""Training: optimizers, schedule, averaging, the loop and its resumable state."""
