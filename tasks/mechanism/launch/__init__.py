"""Processes that work for a stage: children, a distributed launcher, Ray; all die with their parent."""
