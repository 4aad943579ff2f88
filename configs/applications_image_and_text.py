"""Emoji drawings and their names, by two towers: the category of both, and which name is a drawing's.

Source: none for this recipe.
Command: python -m experiments.applications --config configs/applications_image_and_text.py --seeds 3
Time: 18 minutes on 2 CPU cores that much other work shared.
Aim: 80 % of the categories, 20 % of the names at first rank, for the dense network; linear models have 73.6 %, chance 0.6 %.
Result, mean of 3 seeds: dense 67.60 % and a recall of 9.9 % (both aims are missed, and the category is worse than a linear
model's); pruned 60.11 at 1.55x, int8 67.42 at 3.88x, both 60.49 at 5.98x, distilled 60.49 at 1.55x, tuned 67.23 at 6.76x.
Channels cut lose more than 2 points.
"""

from experiments.common.config import Adam
from experiments.common.objectives import ImageAndText as Both
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
