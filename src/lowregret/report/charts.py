"""What the charts of `report.html` draw, as plain values for its script. The drawing is `assets/report.js`."""

from __future__ import annotations

import json
import math

from lowregret.report.curves import (
    Curve,
    base_nll,
    held_out_curves,
    log_step,
    rate_curves,
    slot_styles,
    step_ticks,
    training_curves,
)
from lowregret.report.findings import slot_findings
from lowregret.specs import ResolvedPlan
from lowregret.store import RunDirectory


def chart_data(run: RunDirectory) -> dict[str, object]:
    """Series, styles and ticks of every chart of a run."""
    plan, evals, metrics = run.plan, run.read_evals(), run.read_metrics()
    last = max([1, *(row.step for row in metrics), *(row.step for row in evals)])
    raw = {(row.slot, row.step): row.loss for row in metrics if math.isfinite(row.loss)}
    return {
        "styles": style_data(plan),
        "heldOut": [
            {"split": split, "base": base_nll(evals, split), "curves": [curve_data(curve) for curve in curves]}
            for split, curves in held_out_curves(evals, plan).items()
        ],
        "heldOutLabel": "NLL (nats per token)",
        "series": [
            {
                "id": "training",
                "label": "training loss (nats per token)",
                "curves": [
                    {**curve_data(curve), "raw": [raw[curve.slot, step] for step in curve.steps]}
                    for curve in training_curves(metrics, plan)
                ],
            }
        ],
        "rates": [
            {"label": curve.label, "slots": curve.slots, "rates": curve.rates, "values": curve.values}
            for curve in rate_curves(slot_findings(run))
        ],
        **axis_data(last),
    }


def style_data(plan: ResolvedPlan) -> dict[str, object]:
    """How each slot looks."""
    styles = slot_styles(plan)
    return {slot: {"light": style.light, "dark": style.dark, "dash": style.dash} for slot, style in styles.items()}


def axis_data(last: int) -> dict[str, object]:
    """Ticks of the axis of steps, and its end."""
    ticks = step_ticks(last)
    return {"ticks": {"at": [log_step(tick) for tick in ticks], "text": [f"{tick:,}" for tick in ticks]}, "last": last}


def script_json(data: object) -> str:
    """JSON that may stand inside a script element whatever text it holds.

    >>> script_json({"a": "</script>"})
    '{"a":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def curve_data(curve: Curve) -> dict[str, object]:
    """A line and its places on both axes of steps."""
    return {
        "slot": curve.slot,
        "steps": curve.steps,
        "x": [log_step(step) for step in curve.steps],
        "values": curve.values,
    }
