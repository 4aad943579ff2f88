"""Techniques alone, in pairs, all together, and in other orders."""
