"""What channels are worth, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import MLP, POINT, X, mlp, removed

from lepton_jax.pruning.channels import (
    ActivationRank,
    BatchNormScale,
    Elements,
    Fisher,
    GeometricMedian,
    Norm,
    Random,
    Taylor,
    feature_maps,
    plan,
)
from lepton_jax.pruning.criteria import Magnitude


def test_scores_by_hand():
    # sum |w| of a's columns 2, 2, 4, 1 and of b's rows 1, 4, .5, .25
    def by(**settings):
        return plan(mlp, MLP, POINT, fraction=0.5, **settings).removed["a", 1]

    assert by() == (0, 3)
    assert by(reduce="max") == (0, 3)
    assert by(criterion=Norm(select="a", order=2)) == (0, 3)
    assert by(criterion=Norm(select="b")) == (2, 3)
    assert by(criterion=Norm(order=2)) == (0, 3)
    assert by(criterion=Magnitude()) == (0, 3)
    # |b g|: 1, .04, .5, 2
    gradients = {"a": jnp.zeros((2, 4)), "b": jnp.array([[1.0], [0.01], [1.0], [8.0]])}
    assert by(criterion=Taylor(gradients=gradients)) == (1, 2)
    assert by(criterion=Elements(criterion=Magnitude(), select="b")) == (2, 3)


def test_fisher_and_joint_taylor_by_hand():
    curvature = {"a": jnp.ones((2, 4)), "b": jnp.zeros((4, 1))}
    # sum a**2 / 2 by column: 1, 2, 5, .25
    assert plan(mlp, MLP, POINT, fraction=0.5, criterion=Fisher(curvature=curvature)).removed["a", 1] == (0, 3)
    gradients = {"a": jnp.array([[1.0, 1.0, 1.0, 1.0], [-1.0, 9.0, 3.0, 1.0]]), "b": jnp.zeros((4, 1))}
    # |sum a g| by column: 0, 2, 0, 1; sum |a g|: 2, 2, 6, 1
    assert plan(mlp, MLP, POINT, fraction=0.5, criterion=Taylor(gradients=gradients, joint=True)).removed["a", 1] == (0, 2)


def test_geometric_median_takes_the_most_replaceable():
    variables = {"a": jnp.array([[0.0, 1.0, 1.1, 9.0], [0.0, 0.0, 0.0, 0.0]]), "b": jnp.ones((4, 1))}
    assert plan(mlp, variables, POINT, fraction=0.25, criterion=GeometricMedian()).removed["a", 1] == (1,)


def test_batch_norm_scale(net):
    apply, variables = net
    with pytest.raises(ValueError, match=r"params/last/kernel\[3\]: none of its slices has a score"):
        plan(apply, variables, X, fraction=0.5, criterion=BatchNormScale())
    made = plan(apply, variables, X, fraction=0.5, criterion=BatchNormScale(), exclude="*last/bias")
    scale = np.asarray(variables["params"]["BatchNorm_0"]["scale"])
    assert made.removed["params/BatchNorm_0/scale", 0] == tuple(sorted(np.argsort(scale)[:4].tolist()))


def test_activation_rank(net):
    apply, variables = net
    maps = feature_maps(apply, variables, X)
    assert {place: m.shape for place, m in maps.items()} == {
        ("params/Conv_0/kernel", 3): (2, 8, 4, 4),
        ("params/last/kernel", 3): (2, 4, 4, 4),
    }
    flat = dict(maps)
    flat["params/last/kernel", 3] = np.concatenate([np.ones((2, 2, 4, 4)), maps["params/last/kernel", 3][:, 2:]], axis=1)
    made = plan(apply, variables, X, fraction=0.5, criterion=ActivationRank(maps=flat))
    assert made.removed["params/last/kernel", 3] == (0, 1)


def test_random_is_reproducible(net):
    apply, variables = net
    shapes = jax.eval_shape(lambda: variables)
    first, again, other = (
        removed(plan(apply, shapes, X, fraction=0.5, criterion=Random(key=jax.random.key(k)))) for k in (0, 0, 1)
    )
    assert first == again
    assert first != other
