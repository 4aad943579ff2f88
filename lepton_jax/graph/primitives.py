"""Primitives by kind: what the name of an operation says of it. Rules of one analysis stand with it; families are here."""


def names(text: str) -> frozenset[str]:
    """A set of names, written as words.

    Example:
      >>> sorted(names("mul add"))
      ['add', 'mul']
    """
    return frozenset(text.split())


PLAIN_CALLS = names("jit pjit closed_call core_closed_call core_call call eval_jaxpr")
REMATS = names("remat2 checkpoint")
OWN_DERIVATIVES = names("custom_jvp_call custom_vjp_call")
INLINED = PLAIN_CALLS | REMATS | OWN_DERIVATIVES
"""Calls of one body that runs once; those with a derivative rule must be rebuilt with it if they are rewritten."""

PRODUCTS = names("dot_general conv_general_dilated")
RAGGED = names("ragged_dot ragged_dot_general")

COMPARISONS = names("eq ne lt le gt ge")

PASSING = names("copy copy_p name optimization_barrier sharding_constraint convert_element_type stop_gradient pvary pbroadcast")
"""Their result is their operand, perhaps in another dtype."""

MOVING = names("reshape broadcast_in_dim squeeze expand_dims transpose slice dynamic_slice gather rev")
"""Their result has elements of their operand, in other places."""

SENDING = names("all_gather all_gather_invariant all_to_all ppermute")
"""Their result has elements of their operand on other devices."""

SUMS_OVER_DEVICES = names("psum psum_invariant reduce_scatter")

ARITHMETIC = names(
    "add sub mul div neg max min rsqrt sqrt square exp log tanh logistic abs integer_pow pow sign copy convert_element_type "
    "stop_gradient"
)
"""Element by element; of operands of size 1 along an axis they make the same as of those repeated along it."""
