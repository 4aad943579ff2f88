"""Fine-tune small networks with weights and activations at 8, 4 and 2 bits, from several seeds: one table and one figure.

    python -m experiments.qat_bits --config configs/qat_bits.py --seeds 3
    python -m experiments.qat_bits --config configs/qat_bits_cnn.py --seeds 3 --only lsq
    python -m experiments.qat_bits --config configs/qat_bits.py --max-steps 2 --run-dir runs/trial
    python -m experiments.qat_bits --config configs/qat_bits.py --seeds 3 --resume

All rows of a seed begin at its network in float32. Finished rows are kept in the run's folder, and `--resume` does not run them
again.
"""

from experiments.common import cli
from experiments.common.run_dir import claim_study
from experiments.studies.qat import report
from experiments.studies.qat.study import Runner, Study


def main(options: cli.Options[Study]) -> None:
    """Run the study, and report it."""
    study, seeds, folder = claim_study(options, besides=["only"])
    report.write(folder, study, Runner(study, seeds, folder).run())


if __name__ == "__main__":
    cli.run(main, default_config="qat_bits.py", description=__doc__, kind=Study)
