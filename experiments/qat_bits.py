"""Fine-tune small networks with weights and activations at 8, 4 and 2 bits, from several seeds: one table and one figure.

    python -m experiments.qat_bits --config configs/qat_bits.py --seeds 3
    python -m experiments.qat_bits --config configs/qat_bits_cnn.py --seeds 3 --only lsq
    python -m experiments.qat_bits --config configs/qat_bits.py --max-steps 2 --run-dir runs/trial
    python -m experiments.qat_bits --config configs/qat_bits.py --seeds 3 --resume

All rows of a seed begin at its network in float32. Finished rows are kept in the run's folder, and `--resume` does not run them
again.
"""

from experiments.common.study import script
from experiments.studies.qat_bits import QatBits

main = script(__doc__, "qat_bits.py", QatBits)

if __name__ == "__main__":
    main()
