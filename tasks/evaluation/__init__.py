"""What only measures: scores, questions, pairs of scores, plots, and the gate that decides on them."""
