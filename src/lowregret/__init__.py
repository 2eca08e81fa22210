"""Will LoRA match full fine-tuning on this model and this data, and with which settings?"""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "AdapterSpec": "specs",
    "DataSpec": "specs",
    "FullSpec": "specs",
    "HardwareSpec": "specs",
    "ModelSpec": "specs",
    "OptimSpec": "specs",
    "PolicyGradientSpec": "specs",
    "RewardSpec": "specs",
    "RLSpec": "specs",
    "RunSpec": "specs",
    "SamplingSpec": "specs",
    "ScheduleSpec": "specs",
    "SlotSpec": "specs",
    "TrainSpec": "specs",
    "LowregretError": "errors",
    "RunDirectory": "store.run",
    "list_runs": "store.listing",
    "locate_model": "models.locate",
    "load_data": "data.load",
    "load_problems": "data.problems",
    "read_shape": "planner.shapes",
    "resolve": "planner.resolve",
    "recommend": "planner.recommend",
    "train": "training.sft",
    "train_rl": "training.rl",
    "validate_capacity": "planner.recommend",
}
"""Public name -> the module it lives in, imported when the name is first asked for: torch takes seconds to load."""

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
