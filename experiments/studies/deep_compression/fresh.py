"""Run a `.lepton` file in a process of its own, which has none of the model's code: ``load`` and call, nothing else.

python -m experiments.studies.deep_compression.fresh model.lepton images.npy logits.npy --batch 1000
"""

import argparse
import sys

import numpy as np

import lepton_jax


def main() -> None:
    """Write the outputs of a file for the given inputs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("inputs", help=".npy, its first axis the examples")
    parser.add_argument("outputs", help=".npy to write")
    parser.add_argument("--batch", type=int, default=1000, help="examples a call")
    arguments = parser.parse_args()
    model, inputs = lepton_jax.load(arguments.file), np.load(arguments.inputs)
    starts = range(0, len(inputs), arguments.batch)
    outputs = [np.asarray(model(inputs[start : start + arguments.batch])) for start in starts]
    brought = [name for name in ("flax", "lepton_jax.models") if name in sys.modules]
    if brought:
        raise ImportError(f"this process was to have none of the model's code, but has imported {', '.join(brought)}.")
    np.save(arguments.outputs, np.concatenate(outputs))


if __name__ == "__main__":
    main()
