"""Several transforms in order, as one."""

from typing import Any

import jax

from lepton_jax.core import packed, paths
from lepton_jax.core.errors import collect
from lepton_jax.core.transform.base import State, Transform
from lepton_jax.core.transform.recipe import named
from lepton_jax.core.transform.wrapper import Moved, Seen, wrapper
from lepton_jax.core.typing import PyTree, Step


@named
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
            seen = _in_order("view_leaves", transforms[:number], params, states)
            after, state = transform.init(seen)
            params, states = _masters(params, seen, after), (*states, state)
        return params, states

    def see(part: Seen, params: PyTree, states: State) -> PyTree:
        if part == "view":
            return packed.unpack(see("view_leaves", params, states))
        return _in_order(part, transforms, params, states)

    def move(part: Moved, params: PyTree, states: State, grads: PyTree, step: Step) -> tuple[PyTree, State]:
        new: tuple[State, ...] = ()
        for transform, state in zip(transforms, states, strict=True):
            params, state = getattr(transform, part)(params, state, grads, step)
            new = (*new, state)
        return params, new

    return wrapper(init, see, move)


def _in_order(part: Seen, transforms: tuple[Transform, ...], params: PyTree, states: State) -> PyTree:
    for transform, state in zip(transforms, states, strict=True):
        params = getattr(transform, part)(params, state)
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
