"""How well a model predicts, and whether a difference is more than chance."""
