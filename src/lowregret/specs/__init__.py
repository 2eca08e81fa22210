"""The nouns of a run as frozen dataclasses. Standard library only."""

from lowregret.specs.adapter import AdapterSpec, FullSpec
from lowregret.specs.data import DataFacts, DataSpec
from lowregret.specs.hardware import DeviceFacts, HardwareSpec
from lowregret.specs.model import ModelSpec
from lowregret.specs.optim import OptimSpec, ScheduleSpec
from lowregret.specs.plan import Derived, Information, ResolvedPlan
from lowregret.specs.run import RunSpec, SlotSpec, TrackingSpec, TrainSpec
from lowregret.specs.shape import MatrixShape, ModelShape
from lowregret.specs.study import Arm, GridSpec, PlannedBank, PlannedCell, QuestionSpec, StudyPlan, StudySpec

__all__ = [
    "Arm",
    "GridSpec",
    "PlannedBank",
    "PlannedCell",
    "QuestionSpec",
    "StudyPlan",
    "StudySpec",
    "AdapterSpec",
    "DataFacts",
    "DataSpec",
    "Derived",
    "DeviceFacts",
    "FullSpec",
    "HardwareSpec",
    "Information",
    "MatrixShape",
    "ModelShape",
    "ModelSpec",
    "OptimSpec",
    "ResolvedPlan",
    "RunSpec",
    "ScheduleSpec",
    "SlotSpec",
    "TrackingSpec",
    "TrainSpec",
]
