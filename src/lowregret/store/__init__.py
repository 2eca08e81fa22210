"""One run directory: its typed reader and writer, and where a run came from. No torch."""

from lowregret.store.environment import Environment, collect_environment
from lowregret.store.listing import RunEntry, list_runs
from lowregret.store.rows import EvalRow, MetricRow, SampleRow
from lowregret.store.run import RunDirectory

__all__ = [
    "Environment",
    "EvalRow",
    "MetricRow",
    "RunDirectory",
    "RunEntry",
    "SampleRow",
    "collect_environment",
    "list_runs",
]
