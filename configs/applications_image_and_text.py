"""Emoji drawings and their names, by two towers: the category of both, and which name is a drawing's.

Source: none for this recipe.
Command: python -m experiments.applications --config configs/applications_image_and_text.py --seeds 3
Aim: 80 % of the categories, 20 % of the names at first rank, for the dense network; linear models have 73.6 %, chance 0.6 %.
"""

from experiments.common.config import Adam
from experiments.common.more_objectives import ImageAndText as Both
from experiments.common.sources import Emoji
from experiments.studies.applications import Applications, Task
from lepton_jax.models import ImageAndText

KNOWN = (
    "1,906 emoji drawings (no photos) in 9 categories, 178 to test: one example is 0.6 points. Linear models have "
    "55.6 % by image, 71.3 % by text, 73.6 % by both; recall at 1, of the 178 names, is 0.6 % by chance; aims for the "
    "dense network: 80 % and 20 %."
)


def get_config() -> Applications:
    data = Emoji()
    net = Task(
        name="two_towers",
        model=ImageAndText(vocabulary=data.tokens, classes=9),
        dense_epochs=25,
        epochs=6,
        dense_optimizer=Adam(learning_rate=2e-3),
        optimizer=Adam(learning_rate=5e-4),
        batch_size=128,
        l2=1e-4,
        scan=False,  # convolutions
        objective=Both(classes=9),
    )
    return Applications(name="applications_image_and_text", data=data, tasks=(net,), known=KNOWN)
