"""Training: the loop, its batches, objectives and optimizer, on one or many processes."""
