"""Seven networks before and after their graphs are optimised: batch norms folded, what XLA on a CPU is slow at done otherwise.

Source: the papers claim convolutions 50 % faster, pools 30 %, dense layers 40 %, time 20 % less, memory 30 % less.
Command: python -m experiments.graph_optimisation
"""

from experiments.studies.graph_optimisation import GraphOptimisation


def get_config() -> GraphOptimisation:
    return GraphOptimisation(name="graph_optimisation")
