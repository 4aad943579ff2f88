"""Tasks of daily life under one recipe: dense, pruned, int8, small."""
