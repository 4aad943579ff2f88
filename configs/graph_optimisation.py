"""Seven networks before and after their graphs are optimised: batch norms folded, what XLA on a CPU is slow at done otherwise.

Source: the papers claim convolutions 50 % faster, pools 30 %, dense layers 40 %, time 20 % less, memory 30 % less.
Command: python -m experiments.graph_optimisation --rounds 5
Time: 8 minutes on 2 CPU cores that other programs shared, so most intervals are wide.
Result, revision 4a95546, one seed, XLA on CPU. Convolutions +50 % in four of seven networks (+248 to +1515 %), missed by
the papers' own (+20 %, between -48 and +23), ResNet-20 (-1 %) and LeNet-5 (-8 %); pools +30 % in both that have any (+68,
+145 %); dense +40 % missed by all seven. Time -20 % in four of seven (-75 to -91 %), just missed by the papers' net (-19 %,
its A/A 8 % off); memory -30 % missed by all (the papers' net +18 %, ResNet-18 -27 %).
"""

from experiments.studies.graph_optimisation import GraphOptimisation


def get_config() -> GraphOptimisation:
    return GraphOptimisation(name="graph_optimisation")
