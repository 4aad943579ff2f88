"""Data sets in one small file: lossless or lossy, read by index."""

from lepton_jax.data.compressed.dataset import CompressedDataset, open_dataset
from lepton_jax.data.compressed.lossless import Lossless
from lepton_jax.data.compressed.patch_pca import PatchPCA
from lepton_jax.data.compressed.report import ArrayReport, Report
from lepton_jax.data.compressed.write import write_dataset

__all__ = ["ArrayReport", "CompressedDataset", "Lossless", "PatchPCA", "Report", "open_dataset", "write_dataset"]
