"""Spoken digits (FSDD) by a small convolutional network on spectrograms: dense, pruned, int8, small.

Source: none for this recipe; the set's test split is its authors'.
Command: python -m experiments.applications --config configs/applications_spoken_digits.py --seeds 3
    --data.path FOLDER/fsdd/fsdd.npz
Aims: int8 4x smaller at 1 point lost at most, pruned 30 % smaller at 2 points lost at most.
Result: see experiments/results/applications_spoken_digits.md.
"""

from experiments.common.config import Adam
from experiments.studies.applications.sources import Fsdd
from experiments.studies.applications.study import Study, Task
from lepton_jax.models import CNN


def get_config() -> Study:
    spectrogram = Task(
        name="spectrogram_cnn",
        model=CNN(),
        dense_epochs=12,
        epochs=5,
        dense_optimizer=Adam(learning_rate=2e-3),
        optimizer=Adam(learning_rate=1e-3),
        scan=False,  # convolutions
    )
    return Study(name="applications_spoken_digits", data=Fsdd(), tasks=(spectrogram,))
