"""Comparison of the zoo's own models with arrays that the authors' code produced."""
