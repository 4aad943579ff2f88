"""The rows of the studies of bits."""

from experiments.studies.qat.methods import DoReFaNet, Lsq, LsqPlus, PactAndDoReFa, StraightThrough
from experiments.studies.qat.study import Row


def rows() -> tuple[Row, ...]:
    """Return 8 bits by ranges as they are, and 4 and 2 bits by every method."""
    few = (4, 2)
    return (
        Row(name="straight_through", bits=8, method=StraightThrough()),
        *(Row(name="lsq", bits=bits, method=Lsq()) for bits in few),
        *(Row(name="lsq_plus", bits=bits, method=LsqPlus()) for bits in few),
        *(Row(name="pact", bits=bits, method=PactAndDoReFa()) for bits in few),
        *(Row(name="dorefa", bits=bits, method=DoReFaNet()) for bits in few),
    )
