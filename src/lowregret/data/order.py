"""The order of the examples: a function of (seed, step), so that a resumed run needs no history."""

from __future__ import annotations

from typing import Any

import numpy as np

Indices = np.ndarray[Any, np.dtype[np.int64]]


class ExampleOrder:
    """A new permutation every epoch; a batch that crosses an epoch's end goes on in the next permutation.

    >>> order = ExampleOrder(5, seed=0)
    >>> sorted(order.batch(0, 3).tolist() + order.batch(1, 3).tolist()[:2])
    [0, 1, 2, 3, 4]
    """

    def __init__(self, num_examples: int, seed: int) -> None:
        self.num_examples = num_examples
        self.seed = seed
        self._epoch = -1
        self._permutation: Indices = np.empty(0, dtype=np.int64)

    def batch(self, step: int, batch_size: int) -> Indices:
        """Indices of the examples of a step (from 0)."""
        positions = np.arange(step * batch_size, (step + 1) * batch_size)
        epochs, places = np.divmod(positions, self.num_examples)
        parts = [self._of_epoch(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
        return np.concatenate(parts)

    def _of_epoch(self, epoch: int) -> Indices:
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(self.num_examples)
        return self._permutation
