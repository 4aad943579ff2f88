"""Which dtype parameters, computation and outputs have."""

from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import PyTree, Select
from lepton_jax.precision.cast import cast, floating

_WIDEST = 4


@checked
@dataclass(frozen=True, kw_only=True)
class Policy:
    """The dtypes of mixed precision; `autocast` carries it out as a rewrite, `view` as a transform.

    Args:
      param_dtype: of the masters that the optimiser trains.
      compute_dtype: of dots and convolutions: "bfloat16" ("bf16"), "float16" or "float32". For eight bits give `autocast` an
        `Fp8` as well; what is not in eight bits is then in this dtype.
      output_dtype: of a model's floating outputs; None leaves them as the model has them.

    Raises:
      TypeError: for what is no floating dtype, one that jax's settings do not allow, or one that a dot cannot compute in.

    Example:
      >>> Policy(compute_dtype="bfloat16")
      Policy(param_dtype=dtype('float32'), compute_dtype=dtype(bfloat16), output_dtype=None)

    Source: Micikevicius et al. 2018, "Mixed precision training"; the three names are those of DeepMind's jmp.
    """

    param_dtype: Any = "float32"
    compute_dtype: Any = "bfloat16"
    output_dtype: Any = None

    def __new__(cls, *given: Any, **settings: Any) -> Self:
        if given:
            raise TypeError(
                "Policy: settings are given by name, Policy(compute_dtype='bfloat16'); got "
                f"{', '.join(map(repr, given))} without a name."
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in ("param_dtype", "compute_dtype", "output_dtype"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, floating_dtype(f"Policy: {name}", value))
        for name in ("param_dtype", "compute_dtype"):
            if getattr(self, name) is None:
                raise TypeError(f"Policy: {name} must be a floating dtype, e.g. 'bfloat16'; got None.")
        if not 2 <= self.compute_dtype.itemsize <= _WIDEST:
            raise TypeError(
                f"Policy: compute_dtype must be bfloat16, float16 or float32; got {self.compute_dtype.name}. For eight bits "
                "keep a compute_dtype of sixteen and pass fp8=Fp8() to autocast; without scales eight bits do not train."
            )

    def view(self, *, select: Select = paths.floating) -> Transform:
        """The policy as a view: `cast` to the compute dtype, for models whose operations follow their parameters' dtype.

        Args:
          select: which leaves.

        Example:
          >>> transform = Policy(compute_dtype="float16").view()
          >>> transform.view({"w": jnp.ones(2)}, ())["w"].dtype
          dtype('float16')
        """
        return cast(self.compute_dtype, select=select)

    def masters(self, params: PyTree) -> PyTree:
        """Return the floating parameters in `param_dtype`, before `create` and the optimiser's init.

        Example:
          >>> Policy(param_dtype="bfloat16").masters({"w": jnp.ones(2)})["w"].dtype
          dtype(bfloat16)
        """
        return jax.tree.map(lambda x: x.astype(self.param_dtype) if paths.is_floating(x) else x, params)


def floating_dtype(what: str, dtype: Any) -> jnp.dtype:
    """Return a floating dtype that jax has, by any of its names.

    Raises:
      TypeError: if it is none, or is float64 while jax is set to 32 bits.

    Example:
      >>> floating_dtype("compute_dtype", "bfloat16")
      dtype(bfloat16)
    """
    found = floating(what, dtype)
    if jax.dtypes.canonicalize_dtype(found) != found:
        raise TypeError(f"{what} is {found.name}, which jax has only with jax.config.update('jax_enable_x64', True).")
    return found


@checked
def check_backend(what: str, dtype: Any) -> None:
    """Raise unless the default backend can hold, cast and multiply a dtype; a tiny program is compiled to find out.

    Raises:
      TypeError: with the backend's own words.

    Example:
      >>> check_backend("Fp8: forward", "float8_e4m3fn")
    """
    found = floating_dtype(what, dtype)

    def probe(x: jax.Array) -> jax.Array:
        return jnp.dot(x.astype(found), x.astype(found), preferred_element_type=jnp.float32)

    try:
        with jax.ensure_compile_time_eval():
            jax.jit(probe).lower(jax.ShapeDtypeStruct((2, 2), jnp.float32)).compile()
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError, TypeError) as error:
        raise TypeError(
            f"{what}: the backend {jax.default_backend()!r} cannot compute in {found.name}: {str(error).splitlines()[0]:.200} "
            "Choose another dtype, e.g. 'bfloat16'."
        ) from error
