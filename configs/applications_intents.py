"""Intents of a bank's customers (Banking77) by a bag of features.

Source: none for this recipe; I. Casanueva et al. 2020 for the set.
Command: python -m experiments.applications --config configs/applications_intents.py --seeds 3
Aim: 90 % for the dense network; tf-idf with logistic regression has 88.8 %.
"""

from experiments.common.config import Adam
from experiments.common.sources import Banking77
from experiments.studies.applications import Applications, Task
from lepton_jax.models import BagOfEmbeddings

KNOWN = (
    "Questions of 77 intents, 9,000 to train. Of the published training questions 7 also occur in the test split. "
    "There one class has 1.3 %, naive Bayes 85.8 %, tf-idf with logistic regression 88.8 %; aim for the dense "
    "network: 90 %."
)


def get_config() -> Applications:
    data = Banking77()
    bag = Task(
        name="bag",
        model=BagOfEmbeddings(vocabulary=data.tokens, classes=77, width=64, hidden=128, dropout=0.3),
        dense_epochs=12,
        epochs=3,
        dense_optimizer=Adam(learning_rate=3e-3),
        optimizer=Adam(learning_rate=5e-4),
    )
    return Applications(name="applications_intents", data=data, tasks=(bag,), known=KNOWN)
