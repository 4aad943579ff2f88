"""A character transformer on tinyshakespeare: int4 weights in groups of 32 by several methods, and W8A8 with SmoothQuant.

Source: Frantar et al. 2023, Lin et al. 2024 and Xiao et al. 2023 compare in this way; none has these figures.
Command: python -m experiments.lm_ptq --text FOLDER/tinyshakespeare/input.txt --seeds 3
Time: 60 minutes on 2 CPU cores that much other work shared, 14 of them after the training.
Result, mean perplexity lost over 3 seeds, float 5.60: int4 to nearest 1.88 %, AWQ 1.85 (1.28 with its range, 0.12
with GPTQ), GPTQ 0.37 (0.55 in activation order), AdaRound 0.33; W8A8 0.05 %, with SmoothQuant 0.04. Seeds differ by a tenth to
a third of a point. Not run again since GPTQ and AdaRound damp by the number of rows.
"""

from experiments.common.char_lm import CharLM
from experiments.common.ptq_recipes import CLIPPED, Recipe
from experiments.studies.lm_ptq import LmPtq, LmRow
from lepton_jax.quantization import AdaRound, Gptq, Static, Uniform


def get_config() -> LmPtq:
    four, eight = Uniform(4, group_size=32), Uniform(8, channel_axis=-1)
    inputs = Static(Uniform(8, symmetric=False))
    ordered = Gptq(activation_order=True)
    return LmPtq(
        name="lm_ptq",
        model=CharLM(steps=1500),
        rows=(
            LmRow(recipe=Recipe(name="float"), format=None),
            LmRow(recipe=Recipe(name="int4, nearest", sequential=False), format=four),
            LmRow(recipe=Recipe(name="int4, GPTQ", method=Gptq()), format=four),
            LmRow(recipe=Recipe(name="int4, GPTQ, order", method=ordered), format=four),
            LmRow(recipe=Recipe(name="int4, AWQ", awq=True, sequential=False), format=four),
            LmRow(recipe=Recipe(name="int4, AWQ, range", awq=True, sequential=False, factors=CLIPPED), format=four),
            LmRow(recipe=Recipe(name="int4, AWQ, GPTQ", awq=True, method=ordered), format=four),
            LmRow(recipe=Recipe(name="int4, AdaRound", method=AdaRound()), format=four),
            LmRow(recipe=Recipe(name="int4, nearest, low rank 4", sequential=False, rank=4), format=four),
            LmRow(recipe=Recipe(name="W8A8, nearest", sequential=False), format=eight, activations=inputs),
            LmRow(recipe=Recipe(name="W8A8, SmoothQuant", sequential=False, smooth=True), format=eight, activations=inputs),
        ),
    )
