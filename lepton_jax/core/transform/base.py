"""The type of all transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Self

import jax

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import one_line
from lepton_jax.core.packed import unpack_coded
from lepton_jax.core.transform.recipe import Recipe, named
from lepton_jax.core.typing import PyTree, Step

State = Any
Init = Callable[[PyTree], tuple[PyTree, State]]
View = Callable[[PyTree, State], PyTree]
Update = Callable[[PyTree, State, PyTree, Step], tuple[PyTree, State]]


class _Parts(NamedTuple):
    init: Init
    view: View
    update: Update
    pack: View
    view_leaves: View
    frozen_update: Update
    recipe: Recipe | None


class Transform(_Parts):
    """A view of the parameters: ``Transform(init, view, update)``.

    A state whose type has a method ``problems() -> {heading: lines}`` says by it what an update met and could not raise, being
    compiled: see `check_state`.

    Attributes:
      init: ``init(params) -> (params, state)``. May exchange leaves for trees of trainable arrays (factors, centroids).
      view: ``view(params, state) -> params``, as the model sees them. Differentiable.
      update: ``update(params, state, grads, step) -> (params, state)``, once per optimiser step, after the optimiser.
      pack: ``pack(params, state) -> tree``, the view in its compressed form; by default the view itself, which never sees the
        codes of an earlier transform.
      view_leaves: what `chain` composes: the view, with factored leaves left in factors (``Dense_0/kernel/u``), so that a
        later transform can work on them; by default the view itself.
      frozen_update: what `update` does once the transform is frozen: keep what it promises of the masters, and learn nothing;
        by default nothing.
      recipe: what `repr` shows; see `named`.

    Example:
      >>> halve = Transform(
      ...     init=lambda params: (params, ()),
      ...     view=lambda params, state: jax.tree.map(lambda w: w / 2, params),
      ...     update=lambda params, state, grads, step: (params, state),
      ... )
      >>> halve.view({"w": 3.0}, ()), halve.pack({"w": 3.0}, ())
      ({'w': 1.5}, {'w': 1.5})
    """

    __slots__ = ()

    def __new__(
        cls,
        init: Init,
        view: View,
        update: Update,
        pack: View | None = None,
        view_leaves: View | None = None,
        frozen_update: Update | None = None,
        recipe: Recipe | None = None,
    ) -> Self:
        pack = pack or partial(_packed_by, view)
        return super().__new__(cls, init, view, update, pack, view_leaves or view, frozen_update or hold, recipe)

    def _replace(self, **parts: Any) -> Self:
        """Return the transform with other parts; with another view, what follows from a view by default is of that one."""
        before = self._asdict()
        if "view" in parts:
            before |= {"pack": None, "view_leaves": None}
        return type(self)(**(before | parts))

    def __repr__(self) -> str:
        if self.recipe is not None:
            return repr(self.recipe)
        return f"Transform({', '.join(getattr(part, '__name__', '...') for part in self[:3])})"


def _packed_by(view: View, params: PyTree, state: State) -> PyTree:
    return view(unpack_coded(params), state)


@checked
def hold(params: PyTree, state: State, grads: PyTree, step: Step) -> tuple[PyTree, State]:
    """Change nothing: the `update` of a transform whose state is fixed.

    Example:
      >>> hold({"w": 1.0}, (), {"w": 5.0}, 3)
      ({'w': 1.0}, ())
    """
    del grads, step
    return params, state


@checked
@named
def identity() -> Transform:
    """Show the parameters as they are.

    Example:
      >>> identity().view({"w": 1.0}, ())
      {'w': 1.0}
    """

    def view(params: PyTree, state: State) -> PyTree:
        return params

    return Transform(lambda params: (params, ()), view, hold, pack=view)


@checked
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
    with given_its_state("pack"):
        return transform.pack(params, state)


@contextmanager
def given_its_state(name: str) -> Iterator[None]:
    """Say so if a transform fails because the state it is given is not its own.

    Raises:
      ValueError: for what a transform raises that looks for its state in another's.
    """
    try:
        yield
    except (AttributeError, KeyError, IndexError) as error:
        raise ValueError(
            f"{name}: params or state are not this transform's: {one_line(error)}. Give both as its init, or its last update, "
            "returned them."
        ) from error


@checked
def check_state(state: State) -> None:
    """Raise if an update met what it could not raise; call it on the host, as often as the losses are looked at.

    Inside a compiled step nothing can be raised. There an update leaves things as they were, and notes in the state what was
    wrong; a state that does so has a method ``problems() -> {heading: lines}``. `lepton_jax.training.fit` calls this function.

    Args:
      state: of any transform, or any tree with such states in it: of a chain, of a whole training run, of several seeds.

    Raises:
      ValueError: with all that the states say.

    Example:
      >>> class Worn(NamedTuple):
      ...     times: int
      ...
      ...     def problems(self):
      ...         return {"worn out": [f"after {self.times} updates"]}
      >>> check_state({"a": (Worn(3), 1.0)})
      Traceback (most recent call last):
      ...
      ValueError: worn out:
        after 3 updates
    """
    found: dict[str, list[str]] = {}
    for node in filter(_notes, jax.tree.leaves(state, is_leaf=_notes)):
        for heading, lines in node.problems().items():
            found.setdefault(heading, []).extend(lines)
    if wrong := ["\n  ".join([f"{heading}:", *lines]) for heading, lines in found.items() if lines]:
        raise ValueError("\n".join(wrong))


def _notes(node: Any) -> bool:
    return callable(getattr(node, "problems", None))
