"""The adaptive model for symbols: bit by bit down a binary tree, predicted from the codes of neighbouring weights."""

from array import array

import numpy as np

from lepton_jax.coding.rangecoder import Coder, Mixer


def code_symbols(coder: Coder, symbols: np.ndarray | None, kept: np.ndarray, alphabet: int, lag: int) -> np.ndarray:
    """Code the symbols at the kept positions, bit by bit down a binary tree; the same call decodes them.

    Codes are ordered as the values they stand for, so the mean code of the neighbours in the column predicts well; the column
    itself and the last code in it predict too.

    Args:
      coder: an `Encoder` or a `Decoder`.
      symbols: flat, one for each kept position in order; None to decode.
      kept: boolean, shape (rows, columns).
      alphabet: how many symbols there are.
      lag: how many rows before lies the neighbour above.
    """
    width, mixer = width_of(alphabet), Mixer(4)
    rows, columns = np.nonzero(kept)
    source = [0] * len(rows) if symbols is None else symbols.tolist()
    step = kept.shape[1]
    before_it = [offset * step for offset in sorted({1, 2, lag, lag + 1, 2 * lag, max(lag - 1, 1)})]
    # One more than the code, 0 where there is none; the places before the first row stay empty.
    grid = array("H", bytes(2 * (kept.size + before_it[-1])))
    last: dict[int, int] = {}
    out = bytearray()
    for symbol, i, j in zip(source, rows.tolist(), columns.tolist()):
        place = before_it[-1] + i * step + j
        around = [grid[place - offset] - 1 for offset in before_it if grid[place - offset]]
        mean = 2 * sum(around) // len(around) + 1 if around else 0
        last[j] = mixer.code_number(coder, symbol, width, (0, mean, last.get(j, alphabet), j))
        grid[place] = last[j] + 1
        out.append(last[j])
    return np.frombuffer(out, np.uint8)


def width_of(alphabet: int) -> int:
    """Bits a symbol, if all are written alike; at least one.

    Example:
      >>> [width_of(alphabet) for alphabet in (1, 2, 3, 4, 5)]
      [1, 1, 2, 2, 3]
    """
    return max((alphabet - 1).bit_length(), 1)
