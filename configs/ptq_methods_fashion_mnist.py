"""Three convolutions with batch norm on Fashion-MNIST, quantized after training to 8, 4, 3 and 2 bits by every method.

Source: Nagel et al. 2020, "Up or down?", and 2021, "A white paper on neural network quantization", compare such methods; no
paper has these figures. configs/qat_bits_cnn.py trains the same network with few bits.
Command: python -m experiments.ptq_methods --config configs/ptq_methods_fashion_mnist.py --seeds 3
Time: 45 minutes on 2 CPU cores that much other work shared, 15 of them quantizing.
Result, accuracy in percent, mean of 3 seeds, float 90.9, the row chosen on held-out images: W8A8 90.8, and by AdaRound with
ranges and biases W4A8 90.7, W3A8 90.6, W2A8 88.6; rounding to nearest: 90.8, 87.7, 86.2, 24.0.
Not run again since symmetric integers use all their levels: these figures are of the narrow range (`narrow_range=True`);
nor since GPTQ and AdaRound damp by the number of rows: they are of a damping of 0.01, and of none.
"""

from experiments.common.config import Adam, Tfds
from experiments.common.ptq_networks import Trained
from experiments.common.ptq_recipes import CLIPPED, Recipe
from experiments.studies.ptq_methods import PtqMethods
from lepton_jax.models import CNN
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
        name="ptq_methods_fashion_mnist",
        trained=Trained(data=Tfds(name="fashion_mnist"), model=CNN(), epochs=4, optimizer=Adam(learning_rate=2e-3)),
        bits=(8, 4, 3, 2),
        images=1000,
        held_out=5000,
        test_images=10_000,
        rows=ROWS,
    )
