"""A published ResNet-20 for CIFAR-10 at 3 bits a number: recipes that are found, and trained with the answers of the network.

Source: none; no toolkit offers this table.
Command: python -m experiments.tuning --config configs/tuning_resnet20.py --seeds 3
Time: 42 minutes on a part of 2 CPU cores that much other work shared, 21 minutes of processor time.
Aim: 91.0 % at 3 bits a number, of the file's real bytes, batch norms with them. Result, mean of 3 seeds, 1,000 lossless test
images: 91.60 % (dense 91.50) after 2 epochs on 7,000 images; before them 87.90, the best uniform recipe 84.73. The divergence
is 0.58 of the uniform recipe's (aim 0.5: missed); bits alone have 0.52 of it and 87.93 %. Zeros alone are never as small.
"""

from experiments.common.config import Cifar10, Momentum
from experiments.studies.tuning import Tuning, rows
from lepton_jax.models import ResNetCifar


def get_config() -> Tuning:
    data, smaller = Cifar10(jpeg=4000), 32 / 3
    return Tuning(
        name="tuning_resnet20",
        data=data,
        model=ResNetCifar(depth=20, shortcut="pad"),
        weights=data.folder / "weights" / "resnet20_cifar10.npz",
        epochs=2,
        batch_size=100,
        scan=False,  # convolutions
        optimizer=Momentum(learning_rate=0.01),
        bits=(2, 3, 4),
        sparsity=(0.5,),
        rank=(),
        trained_sparsity=(0.5,),
        calibration=128,
        soft=0.9,
        rows=(*rows((), trained=(smaller,)), *rows((smaller,))[1:]),
    )
