"""Some transforms of the contract, drawn by a seed, train on four devices as on one.

All of them: ``python tests/training/placed_transforms.py``.
"""

import numpy as np
import pytest
from placed_transforms import EXACT, differences, nets, rows

ALWAYS = ["scanned: prune>int4", "low_rank-matrix train", "qlora-int4"]
NAMES = sorted(rows())
DRAWN = [NAMES[place] for place in np.random.default_rng(25).choice(len(NAMES), 3, replace=False)]


@pytest.mark.parametrize("name", ALWAYS + [name for name in DRAWN if name not in ALWAYS])
def test_masks_and_integers_are_those_of_one_device(name: str) -> None:
    kind, transform = rows()[name]
    for placement, found in differences(nets()[kind], transform, steps=3, only="*SDP" if name in ALWAYS else "TP").items():
        assert (found.masks, found.integers, found.moved) == (0, [], []), placement
        assert found.loss <= (1e-3 if "lsq" in name else EXACT), placement
