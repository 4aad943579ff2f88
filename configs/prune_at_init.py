"""Pruning at initialisation with its sanity ablations: LeNet-300-100 on Fashion-MNIST.

Source: Frankle, Dziugaite, Roy, Carbin 2021, "Pruning neural networks at initialization: why are we missing the mark?", figures
3 to 5, for the form; no paper has these figures for this set.
Command: python -m experiments.sparsity --config configs/prune_at_init.py --seeds 3
Time: 10 minutes on 2 CPU cores that other work shared.
Result, mean of 3 seeds: dense 87.09 %; at 95 % sparsity SNIP 84.17, GraSP 82.60, SynFlow 85.29, magnitude 84.81, random 83.05.
As in the paper, shuffling each layer's mask or taking that of another initialisation costs little or nothing (SNIP 84.66 and
83.74), so that what counts is how much each layer keeps; inverted scores are far worse. At 98 % magnitude empties a layer.
"""

import dataclasses

from experiments.common.config import Adam, Tfds
from experiments.common.mask_finders import Ablation, AtInit
from experiments.common.sparse_methods import Dense
from experiments.studies.sparsity import Row, Sparsity
from lepton_jax.models import LeNet300

RATE = Adam(learning_rate=6e-3)
CRITERIA = {
    "snip": AtInit(criterion="snip"),
    "grasp": AtInit(criterion="grasp"),
    "synflow": AtInit(criterion="synflow", rounds=100),
    "magnitude": AtInit(criterion="magnitude"),
}


ABLATIONS: tuple[Ablation, ...] = ("none", "shuffle", "reinit", "invert")


def row(name: str, method: AtInit, ablation: Ablation) -> Row:
    label = name if ablation == "none" else f"{name}_{ablation}"
    return Row(name=label, method=dataclasses.replace(method, ablation=ablation), optimizer=RATE, panel=name)


def get_config() -> Sparsity:
    return Sparsity(
        name="prune_at_init",
        data=Tfds(name="fashion_mnist"),
        model=LeNet300(),
        epochs=2,
        sparsities=(0.8, 0.95, 0.98),
        rows=(
            Row(name="dense", method=Dense(), optimizer=Adam(learning_rate=3e-3)),
            Row(name="random", method=AtInit(criterion="random"), optimizer=RATE),
            *(row(*one, ablation) for one in CRITERIA.items() for ablation in ABLATIONS),
        ),
    )
