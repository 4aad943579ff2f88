"""Low-rank factorization."""

from lepton_jax.lowrank.activation_aware import ActivationAware, Covariance, SingularCovarianceWarning, activation_aware
from lepton_jax.lowrank.cp import CpAls
from lepton_jax.lowrank.fisher_weighted import fisher_weighted, squared_gradients
from lepton_jax.lowrank.guard import Guarded, RankChoice, RankReport, choose_ranks, keep_faster
from lepton_jax.lowrank.layer_times import dense_macs, layer_times
from lepton_jax.lowrank.method import Method, Rank, RankRule
from lepton_jax.lowrank.ranks import Budget, Energy, Evbmf, Fixed, Fraction
from lepton_jax.lowrank.spatial import SpatialSvd
from lepton_jax.lowrank.svd import Svd, factorize
from lepton_jax.lowrank.tensor_train import TrainMatrixSvd, TrainSvd
from lepton_jax.lowrank.transform import SkippedWarning, factors_of, low_rank
from lepton_jax.lowrank.tucker import Tucker2
from lepton_jax.lowrank.weighted import ByPath, WeightedSvd

__all__ = [
    "ActivationAware",
    "Budget",
    "ByPath",
    "Covariance",
    "CpAls",
    "Energy",
    "Evbmf",
    "Fixed",
    "Fraction",
    "Guarded",
    "Method",
    "Rank",
    "RankChoice",
    "RankReport",
    "RankRule",
    "SingularCovarianceWarning",
    "SkippedWarning",
    "SpatialSvd",
    "Svd",
    "TrainMatrixSvd",
    "TrainSvd",
    "Tucker2",
    "WeightedSvd",
    "activation_aware",
    "choose_ranks",
    "dense_macs",
    "factorize",
    "factors_of",
    "fisher_weighted",
    "keep_faster",
    "layer_times",
    "low_rank",
    "squared_gradients",
]
