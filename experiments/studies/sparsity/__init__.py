"""Sparse networks: pruning, sparse training, masks found before training, lottery tickets."""
