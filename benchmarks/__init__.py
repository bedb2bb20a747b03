"""Measurements beside the best peers; docs/LOG.md and RESULTS.md say what they found."""

from model.kernels.reproducible import fix_order_of_sums

fix_order_of_sums()  # here, so that no way in can forget it
