"""Sentiment of financial headlines towards a named entity (SEntFiN 1.0) by a bag of features.

Source: none for this recipe; A. Sinha et al. 2022 for the set.
Command: python -m experiments.applications --config configs/applications_financial_news.py --seeds 3
Aim: 82 % for the dense network; tf-idf with logistic regression has 78.6 %.
"""

from experiments.common.config import Adam
from experiments.common.sources import Sentfin
from experiments.studies.applications import Applications, Task
from lepton_jax.models import BagOfEmbeddings

KNOWN = (
    "Sentiment of 14,405 pairs of headline and entity, 11,488 to train, split by headline. On the test split the most "
    "frequent class has 40.3 %, naive Bayes 73.9 %, tf-idf with logistic regression 78.6 %; aim for the dense "
    "network: 82 %."
)


def get_config() -> Applications:
    data = Sentfin()
    bag = Task(
        name="bag",
        model=BagOfEmbeddings(vocabulary=data.tokens, classes=3, width=32, hidden=32, dropout=0.5),
        dense_epochs=6,
        epochs=2,
        dense_optimizer=Adam(learning_rate=2e-3),
        optimizer=Adam(learning_rate=3e-4),
        l2=3e-4,
    )
    return Applications(name="applications_financial_news", data=data, tasks=(bag,), known=KNOWN)
