"""Datasets in memory, deterministic batches and cheap augmentation; no TensorFlow."""

from lepton_jax.data.augment import Warp, WarpBank, augment_epoch, warp_bank
from lepton_jax.data.batching import Batch, batch_at, batches, eval_batches, shuffled, steps_per_epoch
from lepton_jax.data.cifar10 import IMAGENET_MEAN, IMAGENET_STD, load_cifar10_jpeg, load_cifar10_subset, standardize
from lepton_jax.data.dataset import Dataset, Split, active_features, check_labels
from lepton_jax.data.digits import load_digits
from lepton_jax.data.fsdd import load_fsdd
from lepton_jax.data.split import from_arrays, stratified
from lepton_jax.data.sst2 import load_sst2
from lepton_jax.data.tfds import load_fashion_mnist, load_mnist, load_tfds

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Batch",
    "Dataset",
    "Split",
    "Warp",
    "WarpBank",
    "active_features",
    "augment_epoch",
    "batch_at",
    "batches",
    "check_labels",
    "eval_batches",
    "from_arrays",
    "load_cifar10_jpeg",
    "load_cifar10_subset",
    "load_digits",
    "load_fashion_mnist",
    "load_fsdd",
    "load_mnist",
    "load_sst2",
    "load_tfds",
    "shuffled",
    "standardize",
    "steps_per_epoch",
    "stratified",
    "warp_bank",
]
