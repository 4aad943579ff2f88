"""Datasets in memory, deterministic batches and cheap augmentation; no TensorFlow."""

from lepton_jax.data.augment import Warp, WarpBank, augment_epoch, warp_bank
from lepton_jax.data.av_digits import load_av_digits
from lepton_jax.data.banking77 import load_banking77
from lepton_jax.data.batching import Batch, batch_at, batches, eval_batches, shuffled, steps_per_epoch
from lepton_jax.data.bccd import boxes_of, load_bccd
from lepton_jax.data.cifar10 import IMAGENET_MEAN, IMAGENET_STD, load_cifar10_jpeg, load_cifar10_subset, standardize
from lepton_jax.data.dataset import Dataset, Split, active_features, check_labels
from lepton_jax.data.digits import load_digits
from lepton_jax.data.emoji import load_emoji
from lepton_jax.data.fsdd import load_fsdd
from lepton_jax.data.nab import load_nab
from lepton_jax.data.ngrams import hashed, ngrams, words_of
from lepton_jax.data.online_retail import load_online_retail
from lepton_jax.data.pieces import Pieces
from lepton_jax.data.pneumonia import load_pneumonia
from lepton_jax.data.sentfin import entity_features, load_sentfin
from lepton_jax.data.split import from_arrays, stratified
from lepton_jax.data.sst2 import load_sst2
from lepton_jax.data.tatoeba import load_tatoeba, tatoeba_pieces
from lepton_jax.data.tfds import load_fashion_mnist, load_mnist, load_tfds

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Batch",
    "Dataset",
    "Pieces",
    "Split",
    "Warp",
    "WarpBank",
    "active_features",
    "augment_epoch",
    "batch_at",
    "batches",
    "boxes_of",
    "check_labels",
    "entity_features",
    "eval_batches",
    "from_arrays",
    "hashed",
    "load_av_digits",
    "load_banking77",
    "load_bccd",
    "load_cifar10_jpeg",
    "load_cifar10_subset",
    "load_digits",
    "load_emoji",
    "load_fashion_mnist",
    "load_fsdd",
    "load_mnist",
    "load_nab",
    "load_online_retail",
    "load_pneumonia",
    "load_sentfin",
    "load_sst2",
    "load_tatoeba",
    "load_tfds",
    "ngrams",
    "shuffled",
    "standardize",
    "steps_per_epoch",
    "stratified",
    "tatoeba_pieces",
    "warp_bank",
    "words_of",
]
