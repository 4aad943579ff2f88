"""Models of others, as they come in PyPI packages: read, compared with ONNX Runtime, compressed, and written back.

    pip install --no-deps magika silero-vad        # any of the packages that the config names; none is needed
    python -m experiments.foreign_models --seeds 3
    python -m experiments.foreign_models --only magika --seeds 3
    python -m experiments.foreign_models --only attacut_c --steps 5 --engine-rounds 3 --run-dir runs/trial

Files whose package is absent are left out, and the report says how to get them. Finished rows are kept in the run's folder, and
`--resume` does not run them again.
"""

from experiments.common.study import script
from experiments.studies.foreign_models import ForeignModels

main = script(__doc__, "foreign_models.py", ForeignModels)

if __name__ == "__main__":
    main()
