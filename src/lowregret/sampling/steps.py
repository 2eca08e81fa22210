"""Decoding steps: one token more for every row, and on CUDA as one launch.

A step of a small model is a thousand launches, which take the processor longer than the GPU computes. Steps that look
alike (the same slots' rows side by side, as many cached positions looked at) differ in three rows of integers only. So
the second of two such steps in a row is recorded as a CUDA graph over integers in a fixed place, and those behind it
replay it. Where a row has ended an idle one stands in, so that the step looks as it did.
Suffixes: R rows, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lowregret.adapters.routing import Routing
from lowregret.errors import ModelError
from lowregret.models.causal_lm import CausalLM
from lowregret.models.kv_cache import DecodingStep, KVCache

ROW_MULTIPLE = 8
"""Rows of a step that looks different from the one before are filled up to this."""
SEEN_MULTIPLE = 128
"""Its cached positions are rounded up to this."""
MOST_RECORDED = 32
"""Shapes of one sampling, the latest; each holds the activations of a step."""

Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""From a step to its replay, whose result lies in the same place every time."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is equal in steps that look alike.

    >>> Shape(routing=Routing.from_lengths({"r1": 8}), seen=32).seen
    32
    """

    routing: Routing
    seen: int
    """Cached positions looked at."""


@dataclass(kw_only=True)
class _Recorded:
    """A step and the place that it reads."""

    inputs: Tensor
    """Tokens, cache rows and positions, int64 [3, R]."""
    replay: Callable[[], Tensor]


@dataclass(kw_only=True)
class Steps:
    """The steps of one sampling; they share its cache."""

    model: CausalLM
    cache: KVCache
    record: Record | None = None
    """None: steps are not recorded."""
    _last: Shape | None = None
    _recorded: dict[Shape, _Recorded] = field(default_factory=dict[Shape, _Recorded])

    def logits(
        self, slots: dict[str | None, int], tokens: Sequence[int], rows: Sequence[int], held: Sequence[int]
    ) -> Float[Tensor, "R V"]:
        """Logits of each row's next token; to be used before the next step.

        Args:
            slots: number of rows of each slot, in the order of the rows.
            tokens: the token of each row.
            rows: its row in the cache, a permutation of 0..R-1.
            held: tokens that the row held before.
        """
        if self.record is None:
            step = DecodingStep.of(self.cache, rows=rows, held=held, device=self.model.device)
            return self._run(Routing.from_lengths(slots), torch.tensor(tokens, device=self.model.device), step)
        lengths = self._with_idle(slots)
        integers: list[tuple[int, int, int]] = []
        real: list[int] = []
        waiting, free = iter(zip(tokens, rows, held, strict=True)), count(len(rows))
        for slot, length in lengths.items():
            number = slots.get(slot, 0)
            real += range(len(integers), len(integers) + number)
            integers += [next(waiting) for _ in range(number)]
            integers += [(0, next(free), 0) for _ in range(length - number)]
        shape = Shape(routing=Routing.from_lengths(lengths), seen=self.cache.seen(max(held), SEEN_MULTIPLE))
        chosen = torch.tensor(real, device=self.model.device)
        return self._recording(self.record, shape, torch.tensor(integers).T.contiguous())[chosen]

    def _with_idle(self, slots: dict[str | None, int]) -> dict[str | None, int]:
        """Rows of each slot, idle ones included: as in the step before, while more than half of them are of use."""
        if self._last is not None:
            before = {span.slot: span.stop - span.start for span in self._last.routing.spans}
            fits = all(number <= before.get(slot, 0) for slot, number in slots.items())
            if fits and 2 * sum(slots.values()) > sum(before.values()):
                return before
        number, last = sum(slots.values()), next(reversed(slots))
        return {**slots, last: slots[last] + min(-number % ROW_MULTIPLE, self.cache.rows - number)}

    def _recording(self, record: Record, shape: Shape, inputs_3R: Int[Tensor, "3 R"]) -> Tensor:
        """Replays the step where its shape was recorded; records it where the step before had the same shape."""
        known, again = self._recorded.get(shape), self._last == shape
        self._last = shape
        if known is not None:
            known.inputs.copy_(inputs_3R)
            return known.replay()
        here_3R = inputs_3R.to(self.model.device)
        logits_RV = self._fixed(shape, here_3R)
        if again:
            # Nothing happens twice that matters: the same keys and values are written to the same places.
            replay = record(lambda: self._fixed(shape, here_3R))
            if len(self._recorded) == MOST_RECORDED:
                self._recorded.pop(next(iter(self._recorded)))
            self._recorded[shape] = _Recorded(inputs=here_3R, replay=replay)
        return logits_RV

    def _fixed(self, shape: Shape, inputs_3R: Tensor) -> Tensor:
        """A step that reads its integers where they lie."""
        tokens_R, rows_R, positions_R = inputs_3R
        step = DecodingStep(self.cache, rows=rows_R, positions=positions_R, seen=shape.seen, in_order=False)
        return self._run(shape.routing, tokens_R, step)

    def _run(self, routing: Routing, tokens_R: Tensor, step: DecodingStep) -> Tensor:
        with self.model.routed(routing):
            return self.model.logits(self.model.hidden_of(tokens_R, step.positions, step))


def recorder(model: CausalLM) -> Record | None:
    """CUDA graphs that share one pool of memory; None on other devices, for models whose forwards are not known to
    repeat, and where `LOWREGRET_KERNELS=torch`."""
    device = model.device
    if device.type != "cuda" or not model.repeats or os.environ.get("LOWREGRET_KERNELS") == "torch":
        return None
    with torch.cuda.device(device):
        pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def record(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(device), torch.cuda.graph(graph, pool=pool, stream=stream):
                result = step()
        except RuntimeError as error:
            # torch leaves its allocator in the middle of the recording: this process can't go on.
            raise ModelError(f"a decoding step can't be recorded ({error}); set LOWREGRET_KERNELS=torch") from error

        def replay() -> Tensor:
            with torch.cuda.device(device):
                graph.replay()
            return result

        return replay

    return record
