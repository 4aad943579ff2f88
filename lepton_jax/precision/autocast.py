"""Mixed precision as a rewrite of the graph: dots in few bits, what needs it in float32."""

from collections.abc import Mapping, Sequence
from functools import wraps
from typing import Any

import jax

from lepton_jax.core.arguments import checked, checked_but
from lepton_jax.core.typing import PyTree
from lepton_jax.graph.trace import Apply
from lepton_jax.precision.fp8 import Amax, Fp8, part
from lepton_jax.precision.interpreter import Autocast
from lepton_jax.precision.policy import Policy, check_backend
from lepton_jax.precision.rules import Decisions, Rules


@checked_but("compute")
def autocast(
    apply: Apply,
    policy: Policy,
    *,
    compute: str | Sequence[str] = (),
    float32: str | Sequence[str] = (),
    fp8: Fp8 | None = None,
    recompute: bool = True,
) -> Apply:
    """Return `apply` in mixed precision.

    * Dots and convolutions take both operands in the compute dtype and give it: ``preferred_element_type`` is the compute
      dtype too, so that the dots of the backward pass have two narrow operands as well. (Backends add up in float32 inside
      a dot and round its result once.)
    * Sums, means, exponentials, logarithms, quotients, roots, and whatever the table does not know, run in float32. What
      meets their results, up to the next dot, does so too, and is rounded once: a softmax or a norm is float32 inside.
    * Everything else (sums of two, products, relu, tanh, moving and choosing) runs in the dtype of its operands, and in
      float32 where all that uses its result does (the bias of the last layer; a shift before an exponential).

    Only values traced as float32 or float64 are touched. Outputs keep their dtypes (or have `policy.output_dtype`, but for
    updated state); so do the carries of loops and the results of `jax.lax.cond`. Dots that the model itself casts to fewer
    bits stay as they are.

    Args:
      apply: a pure function ``apply(variables, *inputs, **static)``; parameters of any floating dtype.
      policy: the dtypes.
      compute: patterns of what is to run in the compute dtype although the table says otherwise; see `Rules`.
      float32: patterns of what is to stay in float32; these go first.
      fp8: run dots and convolutions of float32 values in eight bits. The variables then need the collection "amax" of
        `init_amax` beside the model's own, and its gradient *is* its next value: take it out of the gradients and put it in
        its place after every step (`next_amax`). Dots in while loops, in `shard_map`s and in functions with derivative
        rules of their own stay in the compute dtype.
      recompute: for the backward pass save, of a stretch in float32, only what goes in (which is narrow), and compute what is
        in between again; False saves float32 values as plain differentiation does.

    Returns:
      function of the same arguments; it works under jit, grad, vmap and scan. Call it under jit.

    Raises:
      ValueError: when called, if a pattern matches nothing.
      TypeError: when called, if the backend lacks the compute dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> def apply(params, x):
      ...     return jax.nn.softmax(x @ params["kernel"])
      >>> half = autocast(apply, Policy(compute_dtype="bfloat16"))
      >>> jax.jit(half)({"kernel": jnp.eye(2)}, jnp.zeros((1, 2)))
      Array([[0.5, 0.5]], dtype=float32)

    Source: Micikevicius et al. 2018, section 3; PyTorch's torch.amp, whose lists the table follows, with stretches of float32
    in place of single operations.
    """
    rules = Rules(compute=compute, float32=float32)

    @wraps(apply)
    def cast_apply(variables: PyTree, *inputs: Any, **static: Any) -> PyTree:
        check_backend("Policy: compute_dtype", policy.compute_dtype)
        amax: Mapping[str, Amax] = {}
        if fp8 is not None:
            check_backend("Fp8: forward", fp8.forward)
            check_backend("Fp8: backward", fp8.backward)
            variables, amax = part(variables)
        traced = rules.trace(apply, variables, *inputs, **static)
        return Autocast(traced, policy, rules, recompute, fp8, amax)(variables, *inputs, **static)

    return cast_apply


@checked
def explain(
    apply: Apply,
    policy: Policy,
    variables: PyTree,
    *inputs: Any,
    compute: str | Sequence[str] = (),
    float32: str | Sequence[str] = (),
    **static: Any,
) -> Decisions:
    """Return how `autocast` runs every operation and which rule says so; ``print`` it for a table. Nothing is computed.

    Args:
      apply: as for `autocast`.
      policy: the dtypes.
      variables: shapes and dtypes will do.
      *inputs: likewise.
      compute: as for `autocast`.
      float32: as for `autocast`.
      **static: keywords of `apply`.

    Example:
      >>> import jax.numpy as jnp
      >>> print(explain(lambda w, x: jnp.exp(x @ w).sum(), Policy(compute_dtype="float16"), jnp.ones((2, 2)), jnp.ones((1, 2))))
      operation    runs     operands          results  rule
      dot_general  compute  float16, float16  float16  table: dot_general
      exp          wide     float32           float32  table: exp
      reduce_sum   wide     float32           float32  table: reduce_sum
    """
    rules = Rules(compute=compute, float32=float32)
    traced = rules.trace(apply, variables, *inputs, **static)
    interpreter = Autocast(traced, policy, rules, recompute=False)
    jax.eval_shape(lambda *values: interpreter.run(values), *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in traced.in_avals))
    return Decisions(interpreter.decisions.values())
