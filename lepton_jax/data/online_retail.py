"""Baskets of a shop's customers: what they bought before, and what they bought next."""

import os

import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.data.archives import read_archive
from lepton_jax.data.dataset import Dataset, Split


@checked
def load_online_retail(
    path: str | os.PathLike[str], *, basket: int = 32, history: int = 96, examples: int = 8, seed: int = 0
) -> Dataset:
    """Load what customers bought, as examples of one product to be found from the others.

    The last product of each customer is for the final figure, the one before for choices. Training examples are products drawn
    from the rest. What stands for a customer are the other products of the same day, and then those of the days before, newest
    first; in training the part of the day that is shown is drawn too, since its order is not known.

    Args:
      path: an npz archive: ``user``, ``item``, ``day``, ``split`` (0 train, 1 validation, 2 test), one entry a product bought.
      basket: products of the same day at most.
      history: products of days before at most.
      examples: of training, a customer.
      seed: of what is drawn.

    Returns:
      As many classes as there are products. Tokens float32 ``[N, basket + history, 1, 1]``: 1 + a product's number, 0 where
      there is none. The label is the product to be found, which is not among them.

    Raises:
      FileNotFoundError: if there is no such file, with where to get it.
      ValueError: if the archive lacks an array.

    Example:
      >>> load_online_retail("nowhere.npz")
      Traceback (most recent call last):
      ...
      FileNotFoundError: ...

    Source: D. Chen, Online Retail II, UCI Machine Learning Repository, 2019.
    """
    get = "Get Online Retail II of the UCI repository, and write it to an npz archive of user, item, day and split."
    read = read_archive(path, ("user", "item", "day", "split"), get)
    rng = np.random.default_rng(seed)
    order = np.lexsort((-read["day"].astype(int), read["user"]))  # the customers one after another, the newest first
    user, item, day, split = (read[name][order].astype(np.int64) for name in ("user", "item", "day", "split"))
    found: list[list[tuple[np.ndarray, int]]] = [[], [], []]
    for start, stop in _runs(user):
        mine = slice(start, stop)
        for part in range(3):
            known = split[mine] < max(part, 1)
            seen, when = item[mine][known], day[mine][known]
            wanted = np.flatnonzero(split[mine] == part)
            if part == 0:
                wanted = rng.choice(wanted, min(examples, len(wanted)), replace=False)
            for place in wanted + start:
                some = (seen != item[place]) & (when <= day[place])
                shown = _shown(seen[some], when[some] == day[place], basket, history, rng, part == 0)
                found[part].append((shown, int(item[place])))
    parts = [_split(some, basket + history) for some in found]
    return Dataset(name="online_retail", num_classes=int(item.max()) + 1, train=parts[0], validation=parts[1], test=parts[2])


def _runs(user: np.ndarray) -> list[tuple[int, int]]:
    """Where each customer's entries begin and end."""
    starts = np.flatnonzero(np.diff(user, prepend=user[0] - 1))
    return list(zip(starts.tolist(), [*starts[1:].tolist(), len(user)]))


def _shown(seen: np.ndarray, same: np.ndarray, basket: int, history: int, rng: np.random.Generator, partly: bool) -> np.ndarray:
    """The tokens of one example."""
    today, before = rng.permutation(seen[same]), seen[~same][:history]
    today = today[: min(basket, rng.integers(1, len(today) + 1) if partly and len(today) else basket)]
    tokens = np.zeros(basket + history, np.float32)
    tokens[: len(today)], tokens[basket : basket + len(before)] = 1 + today, 1 + before
    return tokens


def _split(examples: list[tuple[np.ndarray, int]], length: int) -> Split:
    images = np.array([tokens for tokens, _ in examples], np.float32).reshape(-1, length, 1, 1)
    return Split(images=images, labels=np.array([label for _, label in examples], np.int32))
