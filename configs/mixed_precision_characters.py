"""A transformer on the characters of Shakespeare in float32, bfloat16 and float16, the latter with every kind of loss scaling.

Source: Micikevicius et al. 2018, "Mixed precision training", section 4.4, compares perplexities in the same way.
Command: python -m experiments.mixed_precision --config configs/mixed_precision_characters.py --seeds 3 --task.text FILE
Time: 43 minutes on 2 CPU cores that much other work shared.
Result, mean of 3 seeds, 600 steps, test perplexity a character: float32 7.65, bfloat16 7.65, float16 unscaled 7.69, with a
static scale 7.65, with a dynamic one 7.65 (no step skipped); the seeds of one precision differ by 0.13.
"""

from pathlib import Path

from experiments.common.char_lm import CharLM
from experiments.studies.precision.rows import rows
from experiments.studies.precision.study import Characters, Study


def get_config() -> Study:
    task = Characters(text=Path("tinyshakespeare/input.txt"), model=CharLM(steps=600))
    return Study(name="mixed_precision_characters", task=task, rows=rows())
