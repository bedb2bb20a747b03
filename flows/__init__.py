"""What can be started: the graph, its recipe, and the ways to run, plan, watch and compare it."""

from model.kernels.reproducible import fix_order_of_sums

fix_order_of_sums()  # here, so that no way in can forget it
