"""LeNet-300-100 on Fashion-MNIST: five techniques alone, in pairs, all together, and in other orders.

Source: none; no toolkit offers this table.
Command: python -m experiments.combined --config configs/combined.py --seeds 3
Time: 29 minutes on 2 CPU cores that other work shared.
Result, mean of 3 seeds, dense 89.60 %: all five together 63.7x smaller at 88.36 %, in three phases 62.6x at 88.16; pruned and
quantized 38.5x at 88.86, low rank and quantized 17.3x at 89.34. Order: pruning, then quantizing is 0.70 points better than the
reverse; factorizing, then pruning 0.69 worse than both at once; factorizing what was pruned fills the zeros again.
Not run again since symmetric integers use all their levels: these figures are of the narrow range (`narrow_range=True`).
"""

from itertools import combinations

from experiments.common.config import Adam, Tfds
from experiments.common.techniques import Technique
from experiments.studies.combined import Combined, Row
from lepton_jax.models import LeNet300

# In the order in which their views are applied: factors are pruned, what is left is quantized, the rest is cast.
ORDER: tuple[Technique, ...] = ("low_rank", "prune", "quantize", "cast", "distil")

OTHER_ORDERS: tuple[tuple[tuple[Technique, ...], ...], ...] = (
    (("quantize", "prune"),),
    (("quantize", "low_rank"),),
    (("prune",), ("quantize",)),
    (("quantize",), ("prune",)),
    (("low_rank",), ("prune",)),
    (("prune",), ("low_rank",)),
    (("low_rank",), ("quantize",)),
    (("low_rank", "distil"), ("prune", "distil"), ("quantize", "cast", "distil")),
)


def get_config() -> Combined:
    together = [(), *((name,) for name in ORDER), *combinations(ORDER, 2), ORDER]
    return Combined(
        name="combined",
        data=Tfds(name="fashion_mnist"),
        model=LeNet300(),
        teacher=LeNet300(hidden=(800, 400)),
        dense_epochs=8,
        epochs=6,
        dense_optimizer=Adam(learning_rate=3e-3),
        # The better of 1e-3 and 3e-3 on validation data of one seed, for dense, pruned, quantized and low rank together.
        optimizer=Adam(learning_rate=3e-3),
        rows=(*(Row(phases=(names,)) for names in together), *(Row(phases=phases) for phases in OTHER_ORDERS)),
    )
