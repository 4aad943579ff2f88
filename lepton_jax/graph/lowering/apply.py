"""A function with its slow operations done otherwise, on CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, TypeVar, cast

import jax
from jax.custom_derivatives import SymbolicZero
from jax.experimental.xla_metadata import set_xla_metadata

from lepton_jax.core.arguments import checked_but
from lepton_jax.core.kinds import check_kind
from lepton_jax.core.paths import path_str
from lepton_jax.core.typing import Array
from lepton_jax.graph import _compat
from lepton_jax.graph.interpret import Interpreter
from lepton_jax.graph.lowering.choose import choose, rules_of, site_of
from lepton_jax.graph.lowering.rule import Rule
from lepton_jax.graph.lowering.rules import DEFAULT
from lepton_jax.graph.lowering.site import Site
from lepton_jax.graph.lowering.table import Table, forms_of
from lepton_jax.graph.trace import Equation, Traced, equations_of, is_array, trace

Function = TypeVar("Function", bound=Callable[..., Any])
_OURS = "fast_lowering_"


@checked_but("rules", "table")
def fast_lowering(function: Function, *, rules: Sequence[Rule | str] = DEFAULT, table: Table | None = None) -> Function:
    """Return the same function with those operations done otherwise that XLA on CPU is slow at.

    A convolution whose kernel is larger than its image, convolutions of channels by themselves, derivatives of kernels and of
    pools: their shapes tell, and other operations compute the same numbers, up to the order of sums, up to a hundred times
    faster. On other devices than CPUs the function is what it was: the compiler takes one of two forms, by the platform.

    Apply it last, to what is compiled: ``jax.jit(fast_lowering(train_step))``, with the derivatives inside. A derivative of the
    function that it returns is right too, but its own operations are XLA's again. Nothing is done to a function without slow
    operations: it is traced to the same jaxpr.

    In a `jax.shard_map` every device does its own part. Where the compiler itself spreads a batch over several CPUs, all forms
    but that of the depthwise kernel's derivative keep it so; that one goes through the examples, and gathers them.

    Args:
      function: any function of trees of arrays, ``apply(variables, *inputs)`` or a whole training step. What is no array among
        its arguments is passed to it as it is.
      rules: asked in this order about every operation, or names of some of `lepton_jax.graph.lowering.DEFAULT`.
      table: forms measured on this machine, from `measure_lowerings`, which come before the rules; or the file that keeps them.

    Returns:
      function of the same arguments and results; it works under jit, vmap, scan and export. It is traced whenever it is called,
      so call it under jit.

    Raises:
      ValueError: for an unknown rule.
      TypeError: for what is no function; when called, for one that cannot be traced, with where.

    Example:
      >>> import jax.numpy as jnp
      >>> def apply(kernel, x):
      ...     return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
      >>> kernel, x = jnp.ones((3, 3, 4, 8)), jnp.ones((1, 2, 2, 4))
      >>> mended = jax.jit(fast_lowering(apply))
      >>> bool(jnp.allclose(mended(kernel, x), apply(kernel, x)))
      True
      >>> "rhs_reversal" in mended.lower(kernel, x).compile().as_text()
      False
    """
    check_kind("fast_lowering: function", function, Callable)
    chosen = rules_of("fast_lowering", rules, DEFAULT)
    forms = forms_of("fast_lowering", table)

    @wraps(function)
    def mended(*arguments: Any, **keywords: Any) -> Any:
        traced, values = traced_call(function, arguments, keywords)
        outs = Lowering(traced, chosen, forms).run(values)
        return jax.tree.unflatten(traced.out_tree, outs)

    return cast(Function, mended)


def traced_call(
    function: Callable[..., Any], arguments: tuple[Any, ...], keywords: Mapping[str, Any]
) -> tuple[Traced, list[Any]]:
    """Return the graph of a call, of those arguments that are arrays, and these.

    Args:
      function: what is called.
      arguments: by their places.
      keywords: by their names.
    """
    paths, tree = jax.tree_util.tree_flatten_with_path((arguments, dict(keywords)))
    arrays = {_name(key_path): leaf for key_path, leaf in paths if is_array(leaf)}

    @wraps(function)
    def call(given: Mapping[str, Any]) -> Any:
        leaves = [given[_name(key_path)] if is_array(leaf) else leaf for key_path, leaf in paths]
        args, kwargs = jax.tree.unflatten(tree, leaves)
        return function(*args, **kwargs)

    try:
        traced = trace(call, arrays)
    except (TypeError, ValueError) as error:
        cause = error.__cause__
        if cause is None or isinstance(cause, jax.errors.JAXTypeError):
            raise
        raise cause from None  # what the function itself raised
    return traced, traced.flatten(arrays, (), {})


def _name(key_path: Any) -> str:
    """An argument's own path, which errors name."""
    return path_str(key_path[1:])


class Lowering(Interpreter):
    """Runs a graph with operations in other forms, each form written once.

    Args:
      traced: the graph.
      rules: asked in this order.
      forms: measured ones, which come before the rules.
    """

    def __init__(self, traced: Traced, rules: Sequence[Rule], forms: Mapping[str, str]):
        super().__init__(traced)
        self.rules, self.forms = rules, forms
        self._emitted: dict[Site, Callable[..., Array] | None] = {}
        self._holding: dict[int, bool] = {}

    def handle(self, eqn: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        if eqn.bodies:
            return None if self._holds(eqn) else self.bind(eqn, values)
        emitted = self._form(eqn)
        return self.bind(eqn, values) if emitted is None else [emitted(*values)]

    def fires(self) -> bool:
        """Whether any operation is done otherwise."""
        return any(map(self._otherwise, equations_of(self.traced.jaxpr)))

    def _otherwise(self, eqn: Equation) -> bool:
        return self._holds(eqn) if eqn.bodies else self._form(eqn) is not None

    def _form(self, eqn: Equation) -> Callable[..., Array] | None:
        """What computes the operation otherwise; one function for all sites that are equal."""
        site = site_of(eqn)
        if site is None:
            return None
        if site not in self._emitted:
            rule = choose(site, self.rules, self.forms)
            self._emitted[site] = None if rule is None else emit(rule, site, eqn)
        return self._emitted[site]

    def _holds(self, eqn: Equation) -> bool:
        """Whether a call or loop has an operation inside that is done otherwise."""
        key = id(eqn.raw)
        if key not in self._holding:
            self._holding[key] = not is_ours(eqn) and any(self._body_holds(eqn, body) for body in eqn.bodies)
        return self._holding[key]

    def _body_holds(self, eqn: Equation, body: _compat.Body) -> bool:
        return any(map(self._otherwise, equations_of(body.jaxpr, (*eqn.path, body.label))))


def is_ours(eqn: Equation) -> bool:
    """Whether a call is a form that was put in the place of an operation before.

    Args:
      eqn: the call.
    """
    return str(eqn.params.get("name", "")).startswith(_OURS)


def emit(rule: Rule, site: Site, eqn: Equation) -> Callable[..., Array]:
    """Return the operation in a rule's form on CPU, in XLA's own elsewhere; its derivative is the operation's own.

    Args:
      rule: whose form.
      site: the operation.
      eqn: one place where it stands.
    """

    def direct(*operands: Array) -> Array:
        return _compat.bind(eqn.raw, operands)[0]

    def form(*operands: Array) -> Array:
        return rule.form(site, *operands)

    def otherwise(*operands: Array) -> Array:
        # Inlined, it would be fused into every one of its readers: computed as many times, and compiled anew in every place.
        with set_xla_metadata(inlineable="false"):
            return jax.jit(form)(*operands)

    def lowered(*operands: Array) -> Array:
        return jax.lax.platform_dependent(*operands, cpu=otherwise, default=direct)

    lowered.__name__ = lowered.__qualname__ = _OURS + rule.name.replace(" ", "_")
    shared = jax.jit(lowered)  # one function in the program for all places
    operation = jax.custom_jvp(shared)

    def derivative(primals: Any, tangents: Any) -> tuple[Array, Any]:
        moving = [i for i, tangent in enumerate(tangents) if not isinstance(tangent, SymbolicZero)]

        def of(*some: Array) -> Array:
            operands = list(primals)
            for i, value in zip(moving, some):
                operands[i] = value
            return direct(*operands)

        _, tangent = jax.jvp(of, [primals[i] for i in moving], [tangents[i] for i in moving])
        return operation(*primals), tangent

    operation.defjvp(derivative, symbolic_zeros=True)
    return operation
