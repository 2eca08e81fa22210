"""The nouns of a run as frozen dataclasses. Standard library only."""

from lowregret.specs.adapter import AdapterSpec, Arithmetic, FullSpec, Rounding
from lowregret.specs.data import DataFacts, DataSpec
from lowregret.specs.hardware import DeviceFacts, HardwareSpec
from lowregret.specs.model import ModelSpec
from lowregret.specs.objective import PolicyGradientSpec
from lowregret.specs.optim import OptimSpec, ScheduleSpec
from lowregret.specs.plan import Derived, Information, ResolvedPlan
from lowregret.specs.reward import Failure, Problem, RewardSpec, Score
from lowregret.specs.rl import RLSpec
from lowregret.specs.run import RunSpec, SlotSpec, TrackingSpec, TrainSpec
from lowregret.specs.sampling import SamplingSpec
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
    "Arithmetic",
    "DataFacts",
    "DataSpec",
    "Derived",
    "DeviceFacts",
    "Failure",
    "FullSpec",
    "HardwareSpec",
    "Information",
    "MatrixShape",
    "ModelShape",
    "ModelSpec",
    "OptimSpec",
    "PolicyGradientSpec",
    "Problem",
    "ResolvedPlan",
    "RewardSpec",
    "RLSpec",
    "Rounding",
    "RunSpec",
    "SamplingSpec",
    "ScheduleSpec",
    "Score",
    "SlotSpec",
    "TrackingSpec",
    "TrainSpec",
]
