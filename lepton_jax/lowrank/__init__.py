"""Low-rank factorization."""

from lepton_jax.leaves.adapted import Adapted
from lepton_jax.lowrank.activation_aware import ActivationAware, Covariance, SingularCovarianceWarning, activation_aware
from lepton_jax.lowrank.adapters import AdapterState, Held
from lepton_jax.lowrank.cp import CpAls
from lepton_jax.lowrank.dora import Directed, dora
from lepton_jax.lowrank.fisher_weighted import fisher_weighted, squared_gradients
from lepton_jax.lowrank.layer_times import dense_macs, layer_times
from lepton_jax.lowrank.loftq import loftq
from lepton_jax.lowrank.lora import lora
from lepton_jax.lowrank.merge import merge
from lepton_jax.lowrank.method import ByPath, Method, Rank, RankRule
from lepton_jax.lowrank.penalties import nuclear_norm, orthogonality, penalized
from lepton_jax.lowrank.qlora import qlora
from lepton_jax.lowrank.ranks import (
    Budget,
    Energy,
    Evbmf,
    Fixed,
    Fraction,
    Guarded,
    RankChoice,
    RankReport,
    choose_ranks,
    keep_faster,
)
from lepton_jax.lowrank.reduce_rank import ReduceRankState, reduce_rank
from lepton_jax.lowrank.spatial import SpatialSvd
from lepton_jax.lowrank.svd import Svd, factorize
from lepton_jax.lowrank.tensor_train import TrainSvd
from lepton_jax.lowrank.tensor_train_matrix import TrainMatrixSvd
from lepton_jax.lowrank.transform import SkippedWarning, factors_of, low_rank
from lepton_jax.lowrank.tucker import Tucker2
from lepton_jax.lowrank.weighted import WeightedSvd

__all__ = [
    "ActivationAware",
    "Adapted",
    "AdapterState",
    "Budget",
    "ByPath",
    "Covariance",
    "CpAls",
    "Directed",
    "Energy",
    "Evbmf",
    "Fixed",
    "Fraction",
    "Guarded",
    "Held",
    "Method",
    "Rank",
    "RankChoice",
    "RankReport",
    "RankRule",
    "ReduceRankState",
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
    "dora",
    "factorize",
    "factors_of",
    "fisher_weighted",
    "keep_faster",
    "layer_times",
    "loftq",
    "lora",
    "low_rank",
    "merge",
    "nuclear_norm",
    "orthogonality",
    "penalized",
    "qlora",
    "reduce_rank",
    "squared_gradients",
]
