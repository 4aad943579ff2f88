"""Post-training quantization of a character transformer: int4 weights in groups, and 8-bit weights and activations.

    python -m experiments.lm_ptq --text FOLDER/tinyshakespeare/input.txt --seeds 3
    python -m experiments.lm_ptq --text FILE --model.steps 2 --windows 4 --test-windows 4 --run-dir /tmp/lm_ptq

Trained weights are kept in the run's folder. Perplexity is per character.
"""

from functools import partial

from experiments.common import cli
from experiments.common.run_dir import claim_study
from experiments.studies.ptq.lm_study import LmPtq, Runner, write


def run_study(options: cli.Options[LmPtq]) -> None:
    """Train what is not trained yet, run the rows, and report them."""
    config, seeds, folder = claim_study(options)
    write(folder, config, [result for seed in seeds for result in Runner(config, seed, folder).run()])


main = partial(cli.run, run_study, default_config="lm_ptq.py", description=__doc__, kind=LmPtq)

if __name__ == "__main__":
    main()
