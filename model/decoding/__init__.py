"""Text out of a model: on a CPU one compiled step over packed weights, elsewhere torch with a cache."""
