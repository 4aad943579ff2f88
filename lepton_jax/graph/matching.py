"""Naming operations of a graph by patterns."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from lepton_jax.graph.trace import Equation, Traced


def fits(pattern: str, name: str, eqn: Equation) -> bool:
    """Whether a pattern matches an operation, by its name, by a module around it, or by its primitive.

    A pattern is a glob over operations' names (``'Dense_0/dot_general'``), over the modules that they stand in
    (``'*/Dense_0'``; the outermost need not be written), or a primitive (``'exp'``).

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.graph.trace import trace
      >>> [eqn] = trace(lambda v, x: jnp.exp(x), {}, jnp.ones(2)).equations()
      >>> fits("e*", "Net/Dense_0/exp", eqn), fits("Dense_0", "Net/Dense_0/exp", eqn), fits("Dense", "Net/Dense_0/exp", eqn)
      (True, True, False)
    """
    parts = name.split("/")
    around = ("/".join(parts[:stop]) for stop in range(1, len(parts) + 1))
    return eqn.primitive == pattern or any(fits_end(pattern, module) for module in around)


def fits_end(pattern: str, name: str) -> bool:
    """Whether a pattern matches a name or an end of it: the outermost modules need not be written.

    Example:
      >>> fits_end("Dense_*", "Net/Dense_0"), fits_end("Net", "Net/Dense_0")
      (True, False)
    """
    parts = name.split("/")
    return any(fnmatchcase("/".join(parts[start:]), pattern) for start in range(len(parts)))


def patterns_of(name: str, value: object) -> tuple[str, ...]:
    """Return one pattern or several as a tuple.

    Args:
      name: of the setting, for the error.
      value: a string or strings.

    Raises:
      TypeError: for anything else.

    Example:
      >>> patterns_of("Rules: float32", "exp")
      ('exp',)
    """
    several = (value,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
    if not all(isinstance(pattern, str) for pattern in several):
        raise TypeError(f"{name} must be glob patterns, e.g. ('Dense_0', 'exp'); got {value!r}.")
    return several


def there_is(traced: Traced, equations: Iterable[Equation]) -> str:
    """Return what patterns can name, for the message of an error: modules and operations.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.graph.trace import trace
      >>> traced = trace(lambda v, x: jnp.exp(x), {}, jnp.ones(2))
      >>> there_is(traced, traced.equations())
      'Modules: none. Operations: exp. Write a glob over these.'
    """
    equations = list(equations)
    scopes = sorted({eqn.scope for eqn in equations if eqn.scope})
    primitives = sorted({eqn.primitive for eqn in equations})
    return f"Modules: {', '.join(scopes) or 'none'}. Operations: {', '.join(primitives) or 'none'}. Write a glob over these."
