"""English to German (tatoeba.org), by a small encoder and decoder.

Source: none for this recipe; the layers are those of A. Vaswani et al., Attention is all you need, 2017.
Command: python -m experiments.applications --config configs/applications_translation.py --seeds 3
Aim: 30 BLEU for the dense network; the German of the nearest training sentence has 17.9, the source as it stands 0.25.
"""

from experiments.common.config import Adam
from experiments.common.objectives import Translations
from experiments.common.sources import Tatoeba
from experiments.studies.applications import Applications, Task
from lepton_jax.models import Translator

KNOWN = (
    "164,610 pairs to train, of which the 143,670 without a sentence of more than 16 pieces are used; 2,000 for choices and "
    "2,000 for the test, 7.0 words on average. Accuracy is BLEU (sacrebleu, 13a, cased) against the first translation, by a "
    "beam search of 4. The German of the nearest training sentence has 17.9, the source as it stands 0.25; aim for the dense "
    "network: 30."
)


def get_config() -> Applications:
    data = Tatoeba()
    net = Task(
        name="translator",
        model=Translator(vocabulary=data.tokens),
        dense_epochs=2,
        epochs=1,
        dense_optimizer=Adam(learning_rate=1e-3),
        optimizer=Adam(learning_rate=2e-4),
        batch_size=64,
        scan=False,
        objective=Translations(folder=data.folder, tokens=data.tokens),
    )
    return Applications(name="applications_translation", data=data, tasks=(net,), known=KNOWN)
