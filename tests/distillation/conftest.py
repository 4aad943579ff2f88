"""The teacher of the tests of distillation."""

import pytest
from distillation_models import conv_net

from lepton_jax import distillation as d


@pytest.fixture(scope="module")
def teacher():
    apply, params, model_state = conv_net(6, 1)
    return d.Teacher(apply=apply, params=params, model_state=model_state)
