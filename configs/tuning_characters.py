"""A transformer on the characters of Shakespeare: recipes that are found within a budget, nothing trained after them.

Source: none; no toolkit offers this table.
Command: python -m experiments.study --config configs/tuning_characters.py --seeds 3 --text FOLDER/tinyshakespeare/input.txt
Time: 33 minutes of one core, an hour beside others.
Result: divergence 0.32, 0.14 and 0.17 of the best uniform recipe's at 8, 10 and 12 times smaller (half asked), accuracy of the
next character 39.4, 37.8 and 35.1 % against 37.8, 25.0 and 17.0; dense 40.2 %. Nothing is trained after it.
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
