"""What an installation without an extra must do, as a program: its first argument is the file to write."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import lepton_jax as lepton

if __name__ == "__main__":
    net = nn.Sequential([nn.Dense(24), nn.relu, nn.Dense(10)])
    x = jnp.asarray(np.random.default_rng(3).normal(size=(4, 16)), jnp.float32)
    model = lepton.Model.from_linen(net, net.init(jax.random.key(0), x), x)
    small = lepton.quantize_model(lepton.prune_model(lepton.factorize_model(model, 8), sparsity=0.5), 8)
    small.save(sys.argv[1])
    assert (lepton.load_model(sys.argv[1])(x) == small(x)).all()
    assert small(x).shape == (4, 10)
    assert small(x).dtype == jnp.float32
    print(lepton.account(sys.argv[1]))
