"""Mix the training rows of several sources by weight."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from textmill.data.splitting import shuffled
from textmill.errors import UserError


def left_out(
    weights: Mapping[str, float],
    names: Mapping[int, str],
    sources: NDArray[np.uint64],
    sizes: NDArray[np.uint64],
    keys: NDArray[np.uint64],
    seed: int,
) -> NDArray[np.bool_]:
    """Return a mask, shape (rows,), of the rows to leave out, so that the sizes of the sources relate as the weights.

    No row is repeated: the source that is smallest for its weight stays whole. Of the others, rows stay in the order of
    a hash of their key and the seed, so that the choice does not depend on the order of the rows.

    Args:
        weights: Source -> weight.
        names: Hash of a source -> its name.
        sources: Hash of each row's source, shape (rows,).
        sizes: Characters of each row, shape (rows,).
        keys: Hash of each row's text, shape (rows,).
        seed: Seed of the hash.

    Raises:
        UserError: A source has no weight, or a weight no rows.
    """
    present = {names[int(code)]: np.flatnonzero(sources == code) for code in np.unique(sources)}
    if weights.keys() != present.keys():
        missing = sorted(present.keys() ^ weights.keys())
        fix = f"Name these sources of the training rows: {', '.join(sorted(present))}"
        raise UserError(f"{missing[0]!r} has weight or training rows, not both", where="prepare.mixture", fix=fix)
    total = min(float(sizes[rows].sum()) / weights[name] for name, rows in present.items())
    mask = np.zeros(len(sources), bool)
    for name, rows in present.items():
        order = rows[np.argsort(shuffled(keys[rows], seed), kind="stable")]
        # A row stays if its middle is below the limit: the error is at most half a row
        middle = np.cumsum(sizes[order]) - sizes[order] / 2
        mask[order[middle > total * weights[name] + 0.5]] = True
    return mask
