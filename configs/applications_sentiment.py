"""Sentiment of film reviews (SST-2), by a bag of embeddings and by a small transformer: dense, pruned, int8, small.

Source: none for this recipe; networks of these kinds without pretrained vectors have 80 to 83 % on SST-2 (Iyyer et al. 2015).
Command: python -m experiments.applications --config configs/applications_sentiment.py --seeds 3 --data.folder FOLDER/sst2
Time: 23 minutes on 2 CPU cores that much other work shared.
Aims: int8 or small 4x smaller at 1 point lost at most, pruned 30 % smaller at 2 points lost at most.
Result, mean of 3 seeds: bag of embeddings 81.70 %; pruned 36 % smaller at 81.31, int8 4.35x smaller at 81.68, small 6.70x at
81.35. Transformer 76.46 %; 35 % smaller at 75.47, 4.11x at 76.44, 6.33x at 75.49.
"""

from experiments.common.config import Adam, Sst2
from experiments.common.recipe import ROWS
from experiments.studies.applications import Applications, Task
from lepton_jax.models import BagOfEmbeddings, TextClassifier


def get_config() -> Applications:
    data = Sst2()
    bag = Task(
        name="bag",
        model=BagOfEmbeddings(vocabulary=data.tokens, dropout=0.5),
        dense_epochs=10,
        epochs=4,
        dense_optimizer=Adam(learning_rate=1e-3),
        optimizer=Adam(learning_rate=3e-4),
        l2=1e-5,  # two of 872 validation sentences worse than 0; rare words stay small, which makes int8 files smaller
    )
    transformer = Task(
        name="transformer",
        model=TextClassifier(vocabulary=data.tokens, dropout=0.3),
        dense_epochs=5,
        epochs=2,
        dense_optimizer=Adam(learning_rate=1e-3),
        optimizer=Adam(learning_rate=3e-4),
        l2=1e-5,
    )
    return Applications(name="applications_sentiment", data=data, tasks=(bag, transformer), rows=ROWS[:4])
