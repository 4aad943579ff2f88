"""Networks on engines: bytes, accuracy and time in float, in few bits, with fewer channels, of low rank.

    python -m experiments.deployment --seeds 3
    python -m experiments.deployment --only three_convolutions resnet20 --engines onnxruntime litert
    python -m experiments.deployment --only lenet5 --max-steps 2 --rounds 3 --test-images 32 --run-dir runs/trial

Engines that are not installed are left out: pip install 'lepton-jax[deploy,openvino,litert]', and pip install --no-deps
litert-converter. Data: Fashion-MNIST as TensorFlow Datasets prepares it, in $TFDS_DATA_DIR; beside it the folders that the
configs name. Finished rows are kept in the run's folder, and `--resume` does not run them again.
"""

from experiments.common.study import script
from experiments.studies.deployment import Deployment

main = script(__doc__, "deployment.py", Deployment)

if __name__ == "__main__":
    main()
