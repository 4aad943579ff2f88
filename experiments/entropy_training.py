"""Training for size: the estimated bits of the codes in the loss, against none at equal bytes of the file.

    python -m experiments.entropy_training --seeds 3
    python -m experiments.entropy_training --config configs/entropy_training_lenet5.py --seeds 3
    python -m experiments.entropy_training --max-steps 2 --no-files

All rows begin at the same dense weights, train as long, and are coded by the same coder. on: uniform quantization with
``rate * entropy_bits`` in the loss, for several rates. off: the same without it, at fewer bits, and after magnitude pruning.

Source: Oktay et al. 2020 and Wiedemann et al. 2020 (DeepCABAC), for the idea; neither has these figures.
"""

from experiments.common.study import script
from experiments.studies.entropy_training import EntropyTraining

main = script(__doc__, "entropy_training_lenet300.py", EntropyTraining)

if __name__ == "__main__":
    main()
