"""Post-training quantization of a character transformer: int4 weights in groups, and 8-bit weights and activations.

    python -m experiments.lm_ptq --text FOLDER/tinyshakespeare/input.txt --seeds 3
    python -m experiments.lm_ptq --text FILE --model.steps 2 --windows 4 --test-windows 4 --run-dir /tmp/lm_ptq

Trained weights are kept in the run's folder. Perplexity is per character.
"""

from experiments.common.study import script
from experiments.studies.lm_ptq import LmPtq

main = script(__doc__, "lm_ptq.py", LmPtq)

if __name__ == "__main__":
    main()
