"""A transformer on the characters of Shakespeare in float32, bfloat16 and float16, the latter with every kind of loss scaling.

Source: Micikevicius et al. 2018, "Mixed precision training", section 4.4, compares perplexities in the same way.
Command: python -m experiments.mixed_precision --config configs/mixed_precision_characters.py --seeds 3 --task.text FILE
Time: 43 minutes on 2 CPU cores that much other work shared.
Result, mean of 3 seeds, 600 steps, test perplexity a character: float32 7.65, bfloat16 7.65, float16 unscaled 7.69, with a
static scale 7.65, with a dynamic one 7.65 (no step skipped); the seeds of one precision differ by 0.13.
"""

from pathlib import Path

from experiments.common.char_lm import CharLM
from experiments.studies.mixed_precision import Characters, MixedPrecision, Row
from lepton_jax.precision import DynamicScale, NoScale, Policy, StaticScale

# The reference first. A period of dynamic scaling that a short run goes through.
HALF = Policy(compute_dtype="float16")
ROWS = (
    Row(name="float32"),
    Row(name="bfloat16", policy=Policy(compute_dtype="bfloat16")),
    Row(name="float16_unscaled", policy=HALF, loss_scale=NoScale()),
    Row(name="float16_static", policy=HALF, loss_scale=StaticScale(scale=2.0**10)),
    Row(name="float16_dynamic", policy=HALF, loss_scale=DynamicScale(period=200)),
)


def get_config() -> MixedPrecision:
    task = Characters(text=Path("tinyshakespeare/input.txt"), model=CharLM(steps=600))
    return MixedPrecision(name="mixed_precision_characters", task=task, rows=ROWS)
