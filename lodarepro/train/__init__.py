"""Training: the loop, the optimizer's rule, checkpoints."""
