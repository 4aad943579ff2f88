"""Cells in photos of blood smears (BCCD), by a small detector without anchors.

Source: none for this recipe; the set is Shenggan/BCCD_Dataset's, in its own splits.
Command: python -m experiments.applications --config configs/applications_detection.py --seeds 3
Aim: an average precision at overlap 0.5 of 80 % for the dense network; fixed boxes have 4.7 %.
"""

from experiments.common.config import Adam
from experiments.common.objectives import Boxes
from experiments.common.sources import Bccd
from experiments.studies.applications import Applications, Task
from lepton_jax.models import Detector

KNOWN = (
    "364 photos at 320 x 240 pixels, 205 to train, 4,886 boxes in 3 classes, 2 empty boxes of the source dropped. "
    "Figures are average precisions at an overlap of 0.5, the mean of the classes. One fixed set of boxes has 4.7 %; "
    "aim for the dense network: 80 %."
)


def get_config() -> Applications:
    net = Task(
        name="detector",
        model=Detector(),
        dense_epochs=40,
        epochs=6,
        dense_optimizer=Adam(learning_rate=3e-3),
        optimizer=Adam(learning_rate=1e-3),
        batch_size=8,
        scan=False,  # convolutions
        objective=Boxes(classes=3),
    )
    return Applications(name="applications_detection", data=Bccd(), tasks=(net,), known=KNOWN)
