"""Distillation: losses on logits, features and relations, taps by graph capture, and ways of training."""

from lepton_jax.core.transform import by_part
from lepton_jax.distillation.adapters import Adapter, Gaussian, Linear, Plain, Projections
from lepton_jax.distillation.cache import cache_outputs, cached_batches
from lepton_jax.distillation.crd import Bank, bank, crd, crd_bank, push
from lepton_jax.distillation.dist import dist
from lepton_jax.distillation.dkd import dkd
from lepton_jax.distillation.ensemble import ensemble, ensemble_logits
from lepton_jax.distillation.features import attention_transfer, fsp, hints, vid
from lepton_jax.distillation.logits import soft_targets, teacher_free, token_kl, top_k_soft_targets
from lepton_jax.distillation.mutual import mutual_loss
from lepton_jax.distillation.nst import nst
from lepton_jax.distillation.offline import distill, distillation_loss, of_student, with_adapters
from lepton_jax.distillation.parts import part
from lepton_jax.distillation.progressive import progressively, stages
from lepton_jax.distillation.relations import pkt, rkd_angle, rkd_distance, similarity_preserving
from lepton_jax.distillation.settings import Distill
from lepton_jax.distillation.succession import assistants, born_again
from lepton_jax.distillation.taps import Outputs, tapped
from lepton_jax.distillation.teacher import TaughtBatch, Teacher, as_teacher, taught, teach
from lepton_jax.distillation.terms import FeatureTerm, LogitTerm

__all__ = [
    "Adapter",
    "Bank",
    "Distill",
    "FeatureTerm",
    "Gaussian",
    "Linear",
    "LogitTerm",
    "Outputs",
    "Plain",
    "Projections",
    "TaughtBatch",
    "Teacher",
    "as_teacher",
    "assistants",
    "attention_transfer",
    "bank",
    "born_again",
    "by_part",
    "cache_outputs",
    "cached_batches",
    "crd",
    "crd_bank",
    "dist",
    "distill",
    "distillation_loss",
    "dkd",
    "ensemble",
    "ensemble_logits",
    "fsp",
    "hints",
    "mutual_loss",
    "nst",
    "of_student",
    "part",
    "pkt",
    "progressively",
    "push",
    "rkd_angle",
    "rkd_distance",
    "similarity_preserving",
    "soft_targets",
    "stages",
    "tapped",
    "taught",
    "teach",
    "teacher_free",
    "token_kl",
    "top_k_soft_targets",
    "vid",
    "with_adapters",
]
