"""Images of clothes (Fashion-MNIST) by LeNet-5: dense, pruned, int8, small.

Source: none for this recipe.
Command: python -m experiments.applications --config configs/applications_images.py --seeds 3
Time: 18 minutes on 2 CPU cores that other work shared.
Aims: int8 or small 4x smaller at 1 point lost at most, pruned 30 % smaller at 2 points lost at most.
Result, mean of 3 seeds: dense 90.61 %; pruned 36 % smaller at 90.24, int8 4.09x smaller at 90.65, small 6.31x at 90.26.
Not run again since symmetric integers use all their levels: these figures are of the narrow range (`narrow_range=True`).
"""

from experiments.common.config import Adam, Tfds
from experiments.common.recipe import ROWS
from experiments.studies.applications import Applications, Task
from lepton_jax.models import LeNet5


def get_config() -> Applications:
    lenet5 = Task(
        name="lenet5",
        model=LeNet5(),
        dense_epochs=4,
        epochs=2,
        dense_optimizer=Adam(learning_rate=1e-3),
        optimizer=Adam(learning_rate=5e-4),
        batch_size=128,
        scan=False,  # convolutions
    )
    return Applications(name="applications_images", data=Tfds(name="fashion_mnist"), tasks=(lenet5,), rows=ROWS[:4])
