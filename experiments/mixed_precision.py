"""Train one model in several precisions from several seeds: one table and one figure.

    python -m experiments.mixed_precision --config configs/mixed_precision_fashion_mnist.py --seeds 3
    python -m experiments.mixed_precision --config configs/mixed_precision_characters.py --seeds 3 --task.text FOLDER/input.txt
    python -m experiments.mixed_precision --config configs/mixed_precision_fashion_mnist.py --max-steps 2 --only float32

Masters and optimiser are float32; dots run in the row's dtype, softmax, norms and losses in float32 (`autocast`). Evaluation is
in the precision of training. Finished rows are kept in the run's folder, and `--resume` does not run them again.
"""

from functools import partial

from experiments.common import cli
from experiments.common.run_dir import claim_study
from experiments.studies.precision import report
from experiments.studies.precision.study import Study, run


def run_study(options: cli.Options[Study]) -> None:
    """Run the study, and report it."""
    study, seeds, folder = claim_study(options, besides=["only"])
    report.write(folder, study, run(study, seeds, folder))


main = partial(cli.run, run_study, default_config="mixed_precision_fashion_mnist.py", description=__doc__, kind=Study)

if __name__ == "__main__":
    main()
