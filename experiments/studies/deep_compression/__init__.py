"""Prune, share weights, code: phases one after another."""
