"""A transformer on the characters of Shakespeare: recipes that are found within a budget, nothing trained after them.

Source: none; no toolkit offers this table.
Command: python -m experiments.study --config configs/tuning_characters.py --seeds 3 --text FOLDER/tinyshakespeare/input.txt
Not run at length yet.
"""

from experiments.common.char_lm import CharLM
from experiments.studies.tuning import rows
from experiments.studies.tuning_characters import CharacterTuning


def get_config() -> CharacterTuning:
    return CharacterTuning(
        name="tuning_characters",
        model=CharLM(steps=600),
        bits=(2, 3, 4),
        sparsity=(0.5,),
        evaluations=30,
        rows=rows((8, 10, 12)),
    )
