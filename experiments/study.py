"""Run any ablation: its config says which study it is.

    python -m experiments.study --config configs/gradual_pruning.py --seeds 3
    python -m experiments.study --config configs/qat_bits.py --only lsq --max-steps 2 --run-dir runs/trial
    python -m experiments.study --config configs/qat_bits.py --seeds 3 --resume

Finished rows are kept in the run's folder, and `--resume` does not run them again.
"""

from experiments.common.study import Study, script

main = script(__doc__, "gradual_pruning.py", Study)

if __name__ == "__main__":
    main()
