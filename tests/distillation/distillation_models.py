"""Tiny models that the tests of distillation share."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lepton_jax import distillation as d
from lepton_jax.data import Batch
from lepton_jax.models import LeNet300
from lepton_jax.training import FitSettings, linen_apply


class ConvNet(nn.Module):
    """Two maps of different sizes, batch norm, and a head; sizes by width."""

    width: int = 4

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(self.width, (3, 3))(x)))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(2 * self.width, (3, 3))(x))
        return nn.Dense(3)(x.mean((1, 2)))


def conv_net(width, seed):
    module = ConvNet(width)
    variables = jax.jit(module.init)(jax.random.key(seed), jnp.zeros((1, 4, 4, 1)))
    return linen_apply(module), variables["params"], {"batch_stats": variables["batch_stats"]}


def dense_net(hidden, seed, inputs=64, classes=10):
    module = LeNet300(hidden=hidden, classes=classes)
    return linen_apply(module), jax.jit(module.init)(jax.random.key(seed), jnp.zeros((1, inputs)))["params"]


IMAGES = np.random.default_rng(3).normal(size=(6, 4, 4, 1)).astype(np.float32)
BATCH = Batch(IMAGES, np.array([0, 1, 2, 0, 1, 2], np.int32), np.ones(6, bool))
QUICK = FitSettings(steps=3, log_every=3, evaluate_every=3, checkpoint_every=3, progress=False)


def hint(student="Conv_0", teacher="Conv_0", **settings):
    return d.FeatureTerm(**{"loss": d.hints, "student": student, "teacher": teacher, "adapter": d.Linear(), **settings})
