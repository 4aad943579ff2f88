"""One recipe for several tasks: dense, pruned, int8 and small networks for sentiment, spoken digits and images.

    python -m experiments.applications --config configs/applications_sentiment.py --seeds 3 --data.folder FOLDER/sst2
    python -m experiments.applications --config configs/applications_spoken_digits.py --seeds 3 --data.path FOLDER/fsdd/fsdd.npz
    python -m experiments.applications --config configs/applications_images.py --seeds 3 --only dense int8
    python -m experiments.applications --config configs/applications_images.py --max-steps 2 --run-dir runs/trial
    python -m experiments.applications --config configs/applications_images.py --seeds 3 --resume

Every row is a fine-tuning of the same dense networks, one a seed, for the same epochs, the dense row included. Finished rows
are kept in the run's folder, and `--resume` does not run them again.
"""

from experiments.common.study import script
from experiments.studies.applications import Applications

main = script(__doc__, "applications_images.py", Applications)

if __name__ == "__main__":
    main()
