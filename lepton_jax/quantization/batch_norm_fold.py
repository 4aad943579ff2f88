"""Training with batch norms folded into the weights that are quantized, as they will be when deployed."""

from typing import Any

import jax

from lepton_jax.core.transform import State, Transform
from lepton_jax.core.typing import Array, ModelApply, PyTree
from lepton_jax.graph.fold import folding


class FoldedTraining:
    """Trains a model through the weights that inference will have: batch norms folded in, then quantized.

    With ``w_fold = w gamma / sqrt(var + eps)`` and ``b_fold = beta - mean gamma / sqrt(var + eps)`` of the running statistics,
    the loss is that of the inference graph with ``q(w_fold)`` and ``b_fold``; gradients flow back through the folding into w,
    gamma and beta. In training, the model is also run as it is, on the batch's statistics, to move the running ones; these get
    no gradient.

    What is trained are the model's own parameters, so any optimiser and checkpoint works as before; what is deployed is
    ``packed(...)``, for the folded ``apply``: simulated and deployed are one function of the same weights.

    Args:
      apply: the model.
      params: its parameters; shapes would not do, since the folding is rehearsed once.
      model_state: its other collections, with the running statistics.
      inputs: an example batch.
      transform: quantizes the folded weights, whose paths are their operations' names, e.g.
        ``Net/Conv_0/conv_general_dilated/kernel``. One that keeps the tree (`fake_quant`, `dorefa`, `prune`), since the
        masters are the model's own.

    Raises:
      ValueError: for a transform that re-parametrises weights, or whose selection matches nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from lepton_jax import fake_quant
      >>> from lepton_jax.training import linen_apply
      >>> class Net(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, train=False):
      ...         return nn.BatchNorm(use_running_average=not train)(nn.Dense(2)(x))
      >>> variables = dict(Net().init(jax.random.key(0), jnp.ones((1, 3))))
      >>> params = variables.pop("params")
      >>> folded = FoldedTraining(linen_apply(Net()), params, variables, jnp.ones((1, 3)), fake_quant(4, select="*/kernel"))
      >>> sorted(folded.fold(params, variables))
      ['Net/Dense_0/dot_general/bias', 'Net/Dense_0/dot_general/kernel']
      >>> logits, variables = folded(params, variables, jnp.ones((5, 3)), train=True, key=None)
      >>> logits.shape
      (5, 2)

    Source: Jacob et al. 2018, "Quantization and training of neural networks", section 3.2 and equation 14; Krishnamoorthi 2018,
    "Quantizing deep convolutional networks", section 3.2.1. Deviations: the mean and the variance in the fold are the running
    ones from the first step on, without Krishnamoorthi's correction by the batch's; begin from a trained network.
    """

    def __init__(self, apply: ModelApply, params: PyTree, model_state: PyTree, inputs: Any, transform: Transform) -> None:
        def evaluated(variables: PyTree, inputs: Any) -> Array:
            return apply(variables["params"], variables["state"], inputs, train=False, key=None)[0]

        self._apply, self._transform = apply, transform
        self._fold, self.apply = folding(evaluated, {"params": params, "state": model_state}, inputs)
        before = self.fold(params, model_state)
        after, self.state = transform.init(before)
        structures: list[Any] = [jax.tree.structure(before), jax.tree.structure(after)]
        if structures[0] != structures[1]:
            raise ValueError(
                "FoldedTraining: the transform must keep the folded weights as they are, since they are made of the model's "
                "own parameters at every step; this one re-parametrises them. Take fake_quant, dorefa or prune."
            )

    def fold(self, params: PyTree, model_state: PyTree) -> dict[str, Array]:
        """Return the weights and biases of the inference graph, by path; differentiable."""
        return self._fold({"params": params, "state": jax.lax.stop_gradient(model_state)})

    def view(self, params: PyTree, model_state: PyTree, state: State = None) -> dict[str, Array]:
        """Return them quantized.

        Args:
          params: the model's.
          model_state: with the running statistics.
          state: of the transform, if it moves; by default that of its beginning.
        """
        return self._transform.view(self.fold(params, model_state), self.state if state is None else state)

    def packed(self, params: PyTree, model_state: PyTree, state: State = None) -> PyTree:
        """Return what is deployed: the folded variables with packed leaves, for `apply`; they unpack to the view."""
        leaves = self.fold(params, model_state)
        return self._transform.pack(leaves, self.state if state is None else state)

    def __call__(
        self, params: PyTree, model_state: PyTree, inputs: Any, *, train: bool, key: Array | None
    ) -> tuple[Array, PyTree]:
        """Return the outputs of the folded, quantized network, and the moved statistics: a `ModelApply`."""
        if train:
            _, model_state = apply_detached(self._apply, params, model_state, inputs, key)
        return self.apply(self.view(params, model_state), inputs), model_state


def apply_detached(
    apply: ModelApply, params: PyTree, model_state: PyTree, inputs: Any, key: Array | None
) -> tuple[Array, PyTree]:
    """Run a model in training mode for its statistics alone, without gradients.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.training import linen_apply
      >>> from flax import linen as nn
      >>> variables = nn.Dense(1).init(jax.random.key(0), jnp.ones((1, 2)))
      >>> apply_detached(linen_apply(nn.Dense(1)), variables["params"], {}, jnp.ones((1, 2)), None)[1]
      {}
    """
    return apply(*jax.lax.stop_gradient((params, model_state, inputs)), train=True, key=key)
