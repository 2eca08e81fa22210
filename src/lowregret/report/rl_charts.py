"""What the charts of a run of RL draw, as plain values for the same script as `charts`."""

from __future__ import annotations

from lowregret.report.charts import axis_data, curve_data, style_data
from lowregret.report.rl_curves import accuracy_curves, base_accuracy, bit_curves, step_series
from lowregret.report.rl_findings import accuracy_findings
from lowregret.store import RunDirectory

BITS = "bits"
"""Place of the chart of bits; the others have their measure's key."""


def rl_chart_data(run: RunDirectory) -> dict[str, object]:
    """Series, styles and ticks of every chart of a run."""
    plan, accuracy, policy = run.plan, run.read_accuracy(), run.read_policy()
    assert plan.spec.rl is not None
    bits = [curve for curve in bit_curves(policy, plan) if curve.values[-1] > 0]
    held = [
        {"slot": found.slot, "name": f"{found.slot} holds", "value": found.capacity}
        for found in accuracy_findings(run)
        if found.capacity is not None
    ]
    series: list[dict[str, object]] = [
        {
            "id": one.measure.key,
            "label": one.measure.label,
            "curves": [
                {**curve_data(smoothed), "raw": raw.values} for raw, smoothed in zip(one.raw, one.smoothed, strict=True)
            ],
        }
        for one in step_series(policy, accuracy, plan)
    ]
    if bits:
        curves = [{**curve_data(curve), "raw": curve.values} for curve in bits]
        series.append({"id": BITS, "label": "bits, at most", "curves": curves, "levels": held, "log": True})
    last = max([1, *(row.step for row in policy), *(row.step for row in accuracy)])
    return {
        "styles": style_data(plan),
        "heldOut": [
            {
                "split": split,
                "base": base_accuracy(accuracy, plan, split),
                "curves": [curve_data(curve) for curve in curves],
            }
            for split, curves in accuracy_curves(accuracy, plan).items()
        ],
        "heldOutLabel": f"accuracy of {plan.spec.rl.judge_by} answers",
        "series": series,
        "rates": [],
        **axis_data(last),
    }
