"""A published ResNet-20 for CIFAR-10, quantized after training to 8, 4 and 3 bits by every method.

Source: Nagel et al. 2021, "A white paper on neural network quantization", compares such methods; no paper has these figures.
Command: python -m experiments.ptq_methods --data FOLDER --seeds 3
Time: 75 minutes on 2 CPU cores that much other work shared, 18 of them for the last seed, when less did.
Result, accuracy in percent, mean of 3 seeds, float 91.5, the row chosen on training images: W8A8 91.5, W4A8 91.9 (AdaRound),
W3A8 91.6 (GPTQ); rounding to nearest: 91.5, 90.6, 73.0.
Not run again since symmetric integers use all their levels: these figures are of the narrow range (`narrow_range=True`);
nor since GPTQ and AdaRound damp by the number of rows: they are of a damping of 0.01, and of none.
"""

from experiments.common.ptq_recipes import CLIPPED, Recipe
from experiments.studies.ptq_methods import PtqMethods
from lepton_jax.quantization import AdaRound, Gptq, Mse

# Every method alone, and the best two with all that helps them.
ORDERED = Gptq(activation_order=True)
ROWS = (
    Recipe(name="nearest", sequential=False),
    Recipe(name="nearest, MSE range", sequential=False, calibration=Mse()),
    Recipe(name="nearest, range by output error", sequential=False, factors=CLIPPED),
    Recipe(name="equalised, bias corrected", sequential=False, equalize=True, correct=True),
    Recipe(name="AWQ", sequential=False, awq=True, factors=CLIPPED),
    Recipe(name="low rank 4", sequential=False, rank=4),
    Recipe(name="GPTQ", method=Gptq()),
    Recipe(name="AdaRound", method=AdaRound()),
    Recipe(name="AdaRound, range, biases", method=AdaRound(), factors=CLIPPED, centred=True, correct=True),
    Recipe(name="GPTQ, order, range, biases", method=ORDERED, factors=CLIPPED, centred=True, correct=True),
)


def get_config() -> PtqMethods:
    return PtqMethods(
        name="ptq_methods",
        images=250,  # a quarter of the default, so that three seeds take about an hour on free cores
        aims={8: 91.0, 4: 91.0, 3: 88.0},
        rows=ROWS,
    )
