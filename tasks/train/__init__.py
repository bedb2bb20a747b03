"""The stages that change weights, and what they share."""
