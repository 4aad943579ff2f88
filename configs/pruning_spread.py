"""Where the zeros of one-shot pruning should be: as many in every layer, as ERK says, or by one threshold for all.

Source: Evci et al. 2020, "Rigging the lottery", appendix, compares the same spreads for sparse training; no figures of it for
this network.
Command: python -m experiments.sparsity --config configs/pruning_spread.py --seeds 3
Time: not run at length; it shows what an ablation costs.
"""

from experiments.common.config import Adam, Tfds
from experiments.common.mask_finders import OneShot
from experiments.common.sparse_methods import Dense
from experiments.studies.sparsity import Row, Sparsity
from lepton_jax.models import LeNet300


def get_config() -> Sparsity:
    rate = Adam(learning_rate=3e-3)
    return Sparsity(
        name="pruning_spread",
        data=Tfds(name="fashion_mnist"),
        model=LeNet300(),
        epochs=6,
        sparsities=(0.9, 0.98),
        rows=(
            Row(name="dense", method=Dense(), optimizer=rate),
            *(
                Row(name=name, method=OneShot(spread=name), optimizer=rate, dense_epochs=3)
                for name in ("uniform", "erk", "global")
            ),
        ),
    )
