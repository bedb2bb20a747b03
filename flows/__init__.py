"""What can be started: the graph, its recipe, and the ways to run, plan, watch and compare it."""
