"""Is a number within its range? Every failure is a `SpecError` of one line that names the field and the remedy."""

from __future__ import annotations

import math

from lowregret.errors import SpecError


def seed(value: int, field: str) -> None:
    at_least(value, 0, field, "0 is the default")


def positive(value: float, field: str, remedy: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise SpecError(f"{field}: {value} must be a positive number; {remedy}")


def not_negative(value: float, field: str, remedy: str) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise SpecError(f"{field}: {value} must be 0 or more; {remedy}")


def at_least(value: int, smallest: int, field: str, remedy: str) -> None:
    if value < smallest:
        raise SpecError(f"{field}: {value} must be at least {smallest}; {remedy}")
