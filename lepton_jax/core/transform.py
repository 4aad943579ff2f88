"""Transform: a view of the parameters, in the manner of optax.

A transform is a tuple of pure functions::

    params, tstate = transform.init(params)                          # once; may re-parametrise leaves
    loss(params) = loss_fn(transform.view(params, tstate), batch)    # every step, inside jit, differentiable
    params, tstate = transform.update(params, tstate, grads, step)   # every step, after the optimiser's update

Masters stay float32, so that any optimiser, checkpoint and sharding works unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from lepton_jax.core import packed, paths
from lepton_jax.core.errors import collect
from lepton_jax.core.typing import PyTree, Step

State = Any


class Transform(NamedTuple):
    """A view of the parameters.

    Attributes:
      init: ``init(params) -> (params, state)``. May exchange leaves for trees of trainable arrays (factors, centroids).
      view: ``view(params, state) -> params``, as the model sees them. Differentiable.
      update: ``update(params, state, grads, step) -> (params, state)``, once per optimiser step, after the optimiser.
      pack: ``pack(params, state) -> tree``, the view in its compressed form; None: the view itself.
      view_leaves: what `chain` composes: the view, with factored leaves left in factors (``Dense_0/kernel/u``), so that a
        later transform can work on them; None: the view itself.
      frozen_update: what `update` does once the transform is frozen: keep what it promises of the masters, and learn nothing;
        None: nothing.

    Example:
      >>> halve = Transform(
      ...     init=lambda params: (params, ()),
      ...     view=lambda params, state: jax.tree.map(lambda w: w / 2, params),
      ...     update=lambda params, state, grads, step: (params, state),
      ... )
      >>> halve.view({"w": 3.0}, ())
      {'w': 1.5}
    """

    init: Callable[[PyTree], tuple[PyTree, State]]
    view: Callable[[PyTree, State], PyTree]
    update: Callable[[PyTree, State, PyTree, Step], tuple[PyTree, State]]
    pack: Callable[[PyTree, State], PyTree] | None = None
    view_leaves: Callable[[PyTree, State], PyTree] | None = None
    frozen_update: Callable[[PyTree, State, PyTree, Step], tuple[PyTree, State]] | None = None


def hold(params: PyTree, state: State, grads: PyTree, step: Step) -> tuple[PyTree, State]:
    """Change nothing: the `update` of a transform whose state is fixed."""
    del grads, step
    return params, state


def identity() -> Transform:
    """Show the parameters as they are.

    Example:
      >>> identity().view({"w": 1.0}, ())
      {'w': 1.0}
    """

    def view(params: PyTree, state: State) -> PyTree:
        return params

    return Transform(lambda params: (params, ()), view, hold, pack=view)


def pack(transform: Transform, params: PyTree, state: State) -> PyTree:
    """Return the view in its compressed form: a tree of packed leaves and arrays.

    ``unpack(pack(transform, params, state))`` equals ``transform.view(params, state)`` bit for bit.

    Args:
      transform: any transform or chain.
      params: the trained masters.
      state: the transform's state.

    Example:
      >>> pack(identity(), {"w": 1.0}, ())
      {'w': 1.0}
    """
    return (transform.pack or transform.view)(params, state)


def _view_leaves(transforms: tuple[Transform, ...], params: PyTree, states: State) -> PyTree:
    for transform, state in zip(transforms, states, strict=True):
        params = (transform.view_leaves or transform.view)(params, state)
    return params


def _masters(params: PyTree, seen: PyTree, after: PyTree) -> PyTree:
    """Return the masters, with what an `init` made of the leaves that it saw put in their places."""
    subtrees = jax.tree.structure(seen).flatten_up_to(after)  # type: ignore[attr-defined]
    leaves = jax.tree_util.tree_flatten_with_path(seen)[0]
    changed = {paths.path_str(keys): (keys, new) for (keys, leaf), new in zip(leaves, subtrees) if new is not leaf}
    # By their keys: a leaf that was re-parametrised may have one of its new parameters at its old path.
    places = {keys for keys, _ in jax.tree_util.tree_flatten_with_path(params)[0]}
    masters = paths.flatten(params)
    with collect("chain: a transform wants to re-parametrise what an earlier one already did") as problems:
        wrong = (path for path, (keys, _) in changed.items() if keys not in places)
        problems.extend(f"{path}: change their order, or deselect it in one of them" for path in wrong)
    # What an earlier view showed in another dtype (`cast`) is still trained in the masters' own.
    return paths.replace(params, {path: _as_dtype(new, masters[path].dtype) for path, (_, new) in changed.items()})


def _as_dtype(tree: PyTree, dtype: Any) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if paths.is_floating(leaf) else leaf, tree)


def chain(*transforms: Transform) -> Transform:
    """Apply several views in order, as one transform.

    ``view = view_n(... view_1(params))``. A later transform is initialised from what the earlier ones show, and sees the arrays
    of a factored leaf as leaves of their own. Its state is the tuple of theirs.

    Args:
      transforms: applied from left to right; none gives `identity`.

    Raises:
      TypeError: for anything that is not a transform.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax import cast, prune
      >>> both = chain(prune(0.5), cast(jnp.bfloat16))
      >>> params, state = both.init({"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])})
      >>> both.view(params, state)["kernel"]
      Array([[0, 0],
             [3, 4]], dtype=bfloat16)
    """

    for transform in transforms:
        if not isinstance(transform, Transform):
            raise TypeError(
                f"chain: takes transforms, as in chain(prune(0.5), fake_quant(bits=4)); got a {type(transform).__name__}."
            )

    def init(params: PyTree) -> tuple[PyTree, State]:
        states: tuple[State, ...] = ()
        for number, transform in enumerate(transforms):
            seen = _view_leaves(transforms[:number], params, states)
            after, state = transform.init(seen)
            params, states = _masters(params, seen, after), (*states, state)
        return params, states

    def view_leaves(params: PyTree, states: State) -> PyTree:
        return _view_leaves(transforms, params, states)

    def view(params: PyTree, states: State) -> PyTree:
        return packed.unpack(view_leaves(params, states))

    def update(params: PyTree, states: State, grads: PyTree, step: Step) -> tuple[PyTree, State]:
        new: tuple[State, ...] = ()
        for transform, state in zip(transforms, states, strict=True):
            params, state = transform.update(params, state, grads, step)
            new = (*new, state)
        return params, new

    def frozen_update(params: PyTree, states: State, grads: PyTree, step: Step) -> tuple[PyTree, State]:
        for transform, state in zip(transforms, states, strict=True):
            params, _ = (transform.frozen_update or hold)(params, state, grads, step)
        return params, states

    def pack_all(params: PyTree, states: State) -> PyTree:
        for transform, state in zip(transforms, states, strict=True):
            if transform.pack is None:  # a view that knows nothing of packed leaves must not see their codes
                params = transform.view(packed.unpack_coded(params), state)
            else:
                params = transform.pack(params, state)
        return params

    return Transform(init, view, update, pack_all, view_leaves, frozen_update)


def freeze(transform: Transform, state: State) -> Transform:
    """Keep a trained transform's view as it stands: `init` hands out `state`, and `update` does not change it.

    Pruned masters stay at zero: under momentum or weight decay `update` sets them there again.

    This is how one phase of training hands its invariants to the next: ``chain(freeze(pruned, state), fake_quant(bits=4))``.

    Args:
      transform: the transform that was trained.
      state: its state at the end of training.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax import prune
      >>> pruned = prune(0.5)
      >>> params, state = pruned.init({"kernel": jnp.array([[1.0, 2.0]])})
      >>> frozen = freeze(pruned, state)
      >>> frozen.view(*frozen.init({"kernel": jnp.array([[9.0, 2.0]])}))["kernel"].tolist()
      [[0.0, 2.0]]
    """

    def init(params: PyTree) -> tuple[PyTree, State]:
        # A copy each time: a training step is free to donate its state, and this one must outlive it.
        return params, jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, jax.Array) else leaf, state)

    return transform._replace(init=init, update=transform.frozen_update or hold)
