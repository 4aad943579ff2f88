"""Criteria for filters, one cut for every group of filters or one threshold for all, on a published ResNet-20 for CIFAR-10.

Source: Li et al. 2017, table 1 (ResNet-56-pruned-B, 27.6 % of the FLOPs); the form of Torch-Pruning's benchmark of ResNet-56
(Fang et al. 2023: base, pruned, difference, speed-up in MACs). Both train for many more epochs, on all lossless images.
Command: python -m experiments.filter_pruning --data FOLDER --seeds 3
Time: 55 minutes for the rows dense, l1, taylor, fpgm and random, on 2 CPU cores that other work shared.
Result, mean of 3 seeds, in percent, published 91.5, tuned without a cut 89.5; at 30 and 50 % of the MACs cut: l1 83.3 and
76.8, fpgm 82.4 and 73.7, taylor 81.7 and 72.8, random 78.5 and 68.1. Far below the papers: two passes over 5,000
JPEG-compressed images are 100 steps, and cost even the whole network 2 points. The other rows were not run yet. The table is of
its revision: since then every epoch draws its order from a generator of its own, and a new run differs as another seed would.
"""

from experiments.studies.filter_pruning.study import Row, Study

LI = "ResNet-56, 27.6 % of the FLOPs: 93.04 to 93.06 %"
FANG = "ResNet-56, 2.12 times, L1: 93.53 to 92.93 %"


def get_config() -> Study:
    return Study(
        name="filter_pruning",
        rows=(
            Row(name="dense", criterion="none"),
            Row(name="l1", criterion="l1"),
            Row(name="l2", criterion="l2"),
            Row(name="taylor", criterion="taylor"),
            Row(name="fpgm", criterion="fpgm"),
            Row(name="bn_scale", criterion="bn_scale"),
            Row(name="random", criterion="random"),
            Row(name="l1_global", criterion="l1", ranking="global"),
            Row(name="taylor_global", criterion="taylor", ranking="global"),
        ),
        references={0.3: (LI, "Li et al. 2017, table 1"), 0.5: (FANG, "Torch-Pruning 1.0, benchmarks")},
    )
