"""Train one model in several precisions from several seeds: one table and one figure.

    python -m experiments.mixed_precision --config configs/mixed_precision_fashion_mnist.py --seeds 3
    python -m experiments.mixed_precision --config configs/mixed_precision_characters.py --seeds 3 --task.text FOLDER/input.txt
    python -m experiments.mixed_precision --config configs/mixed_precision_fashion_mnist.py --max-steps 2 --only float32

Masters and optimiser are float32; dots run in the row's dtype, softmax, norms and losses in float32 (`autocast`). Evaluation is
in the precision of training. Finished rows are kept in the run's folder, and `--resume` does not run them again.
"""

from experiments.common.study import script
from experiments.studies.mixed_precision import MixedPrecision

main = script(__doc__, "mixed_precision_fashion_mnist.py", MixedPrecision)

if __name__ == "__main__":
    main()
