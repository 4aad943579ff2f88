"""A small transformer on sentiments of film reviews (SST-2): recipes that are found within a budget, and trained.

Source: none; no toolkit offers this table.
Command: python -m experiments.tuning --config configs/tuning_sst2.py --seeds 3 --data.folder FOLDER/sst2
Not run at length yet.
"""

from experiments.common.config import Adam, Sst2
from experiments.studies.tuning import Tuning, rows
from lepton_jax.models import TextClassifier


def get_config() -> Tuning:
    data = Sst2()
    return Tuning(
        name="tuning_sst2",
        data=data,
        model=TextClassifier(vocabulary=data.tokens, dropout=0.3),
        dense_epochs=5,
        epochs=2,
        dense_optimizer=Adam(learning_rate=1e-3),
        optimizer=Adam(learning_rate=3e-4),
        rows=rows((8, 12, 16), trained=(16, 24)),
    )
