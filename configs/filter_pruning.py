"""Criteria for filters, one cut for every group of filters or one threshold for all, on a published ResNet-20 for CIFAR-10.

Source: Li et al. 2017, table 1 (ResNet-56-pruned-B, 27.6 % of the FLOPs); the form of Torch-Pruning's benchmark of ResNet-56
(Fang et al. 2023: base, pruned, difference, speed-up in MACs). Both train for many more epochs, on all lossless images.
Command: python -m experiments.filter_pruning --data FOLDER --seeds 3
Time: 62 minutes, 55 of CPU, on 2 cores that other work shared.
Result, mean of 3 seeds, in percent, published 91.5, tuned without a cut 89.3; at 30 and 50 % of the MACs cut, the same of every
group (1.51 and 2.11 times fewer, since whole filters go): l1 83.4 and 77.4, l2 82.8 and 75.3, fpgm 82.1 and 74.4, taylor 81.9
and 72.6, bn_scale 79.7 and 70.4, random 78.2 and 67.9; by one threshold for all groups (1.43 to 1.45 and 2.0 times fewer): l1
85.3 and 79.4, taylor 84.6 and 77.6. Far below the papers: two passes over 5,000 JPEG-compressed images are 100 steps, and
cost even the whole network 2 points. Other rates do not help: l1 at 30 %, one seed, has 88.1 on the lossless training images;
at rate 0.004 87.9, at 0.05 82.2, in batches of 50 at 0.002 87.5, at 0.02 85.7.
"""

from experiments.studies.filter_pruning import FilterPruning, Row

LI = "ResNet-56, 27.6 % of the FLOPs: 93.04 to 93.06 %"
FANG = "ResNet-56, 2.12 times, L1: 93.53 to 92.93 %"


def get_config() -> FilterPruning:
    return FilterPruning(
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
