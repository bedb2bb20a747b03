"""Products in fewer bits while training: INT8 with exact sums on a CPU, FP8 on a GPU."""
