"""Spoken digits (FSDD) by a small convolutional network on spectrograms: dense, pruned, int8, small.

Source: none for this recipe; the set's test split is its authors'.
Command: python -m experiments.applications --config configs/applications_spoken_digits.py --seeds 3
    --data.path FOLDER/fsdd/fsdd.npz
Time: 12 minutes on 2 CPU cores that much other work shared.
Aims: int8 or small 4x smaller at 1 point lost at most, pruned 30 % smaller at 2 points lost at most.
Result, mean of 3 seeds: dense 99.00 %; pruned 36 % smaller at 98.67, int8 3.61x smaller at 98.89 (4x missed: the dense file is
coded too, at 3.4 bytes a weight), small 5.59x at 98.67.
"""

from experiments.common.config import Adam, Fsdd
from experiments.common.recipe import ROWS
from experiments.studies.applications import Applications, Task
from lepton_jax.models import CNN


def get_config() -> Applications:
    spectrogram = Task(
        name="spectrogram_cnn",
        model=CNN(),
        dense_epochs=12,
        epochs=5,
        dense_optimizer=Adam(learning_rate=2e-3),
        optimizer=Adam(learning_rate=1e-3),
        scan=False,  # convolutions
    )
    return Applications(name="applications_spoken_digits", data=Fsdd(), tasks=(spectrogram,), rows=ROWS[:4])
