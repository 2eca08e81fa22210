"""`lowregret diagnose`: common failures found from the logs, each with its remedy. No torch.

A run becomes a `RunView`; every rule of `RULES` is a pure function from it to symptoms. Thresholds that the planner has
are the planner's.
"""

from lowregret.studies.diagnose.rounding import surviving_shares
from lowregret.studies.diagnose.run import RULES, Diagnosis, diagnose_run
from lowregret.studies.diagnose.study import diagnose_study
from lowregret.studies.diagnose.symptom import Rule, Severity, Symptom
from lowregret.studies.diagnose.view import DataCounts, RunView, view_of

__all__ = [
    "RULES",
    "DataCounts",
    "Diagnosis",
    "Rule",
    "RunView",
    "Severity",
    "Symptom",
    "diagnose_run",
    "diagnose_study",
    "surviving_shares",
    "view_of",
]
