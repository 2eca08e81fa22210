"""From a study's folder to what estimators see."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType]

from lowregret.specs import AdapterSpec, Arm, SlotSpec
from lowregret.store.study import CellRecord, StudyDirectory
from lowregret.studies.claims.c1_invariance import Transformed
from lowregret.studies.outcome import Outcome


def outcomes_of(study: StudyDirectory, question: int) -> tuple[Outcome, ...]:
    """The finished cells of a question, in the order in which they were asked for.

    Raises:
        CheckpointError: a record was changed by hand.
    """
    outcomes: list[Outcome] = []
    for planned in study.plan.cells:
        if planned.question != question or not study.has_record(planned.cell):
            continue
        record = study.read_record(planned.cell)
        outcomes.append(
            Outcome(
                cell=planned.cell,
                arm=planned.arm,
                lr=planned.lr,
                seed=planned.seed,
                steps=record.steps,
                validation=record.validation,
                test=record.test,
                diverged=record.diverged or record.stopped,
                stopped=record.stopped,
                dynamics=record.dynamics,
                fidelity=record.fidelity,
                seconds=record.seconds or None,
                multiply_adds=planned.arm.multiply_adds * planned.arm.steps or None,
                offered_bits=planned.arm.offered_bits or None,
                stored_bits=_stored_bits(planned.arm, record),
            )
        )
    return tuple(outcomes)


def transformed_pairs(study: StudyDirectory, question: int) -> tuple[Transformed, ...]:
    """Every finished cell of an invariance question beside the cell that it should repeat (C1).

    What a cell is stands in its own spec: p is the factor of A's initial size, q that of B's learning rate.
    """
    cells = [c.cell for c in study.plan.cells if c.question == question and study.has_record(c.cell)]
    slots = {cell: study.cell_spec(cell).slots[0] for cell in cells}
    references = {slot.optim.eps == 0: cell for cell, slot in slots.items() if _factors(slot) == (1.0, 1.0)}
    pairs: list[Transformed] = []
    for cell, slot in slots.items():
        reference = references.get(slot.optim.eps == 0)
        if reference is None or cell in references.values():
            continue
        p, q = _factors(slot)
        kind: Literal["eps 0", "corrected", "uncorrected"] = "eps 0"
        if slot.optim.eps:
            usual, scaled = slots[reference].optim.eps, (slot.optim.eps * p, slot.optim.eps_for_b * q)
            kind = "corrected" if scaled == (usual, usual) else "uncorrected"
        difference = _difference(study, reference, cell)
        pairs.append(Transformed(p=p, q=q, kind=kind, difference=difference, cells=(reference, cell)))
    return tuple(pairs)


def _factors(slot: SlotSpec) -> tuple[float, float]:
    """p and q of a cell: rates are p and q times those of the untransformed cell."""
    assert isinstance(slot.weights, AdapterSpec)
    assert slot.optim.lr is not None
    assert slot.optim.lr_for_b is not None
    p = slot.weights.init_scale
    return p, p * slot.optim.lr_for_b / slot.optim.lr


def _difference(study: StudyDirectory, one: str, other: str) -> float:
    """Largest relative difference of the trained products (alpha/r) B A, or of the losses on the way."""
    records = study.read_record(one), study.read_record(other)
    if any(record.diverged for record in records):
        return math.inf
    curves = [np.array([*record.validation, *record.test]) for record in records]
    worst = float(np.max(np.abs(curves[0] - curves[1]) / np.abs(curves[0])))
    products = [_products(study, cell) for cell in (one, other)]
    largest = max(float(np.abs(product).max()) for product in products[0].values())
    differences = (float(np.abs(products[0][site] - products[1][site]).max()) for site in products[0])
    return max(worst, *(difference / largest for difference in differences))


def _products(study: StudyDirectory, cell: str) -> dict[str, NDArray[np.float64]]:
    """(alpha/r) B A by matrix, in fp64."""
    weights = study.cell_spec(cell).slots[0].weights
    assert isinstance(weights, AdapterSpec)
    tensors = load_file(study.adapter_file(cell))
    ends = (".lora_A.weight", ".lora_B.weight")
    sites = sorted(name.removesuffix(ends[0]) for name in tensors if name.endswith(ends[0]))
    exact = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    return {site: weights.scaling * (exact[site + ends[1]] @ exact[site + ends[0]]) for site in sites}


def _stored_bits(arm: Arm, record: CellRecord) -> float | None:
    """N H - NLL, summed over the training data (science.md, C6b); a cell that diverged holds nothing.

    The NLL is that of the last epoch, each batch before its update, which is no less than the NLL at the end: the bits
    are a lower bound.
    """
    if not arm.offered_bits:
        return None
    if record.diverged or not math.isfinite(record.last_epoch_nats):
        return 0.0
    return max(0.0, arm.offered_bits - record.last_epoch_nats / math.log(2))
