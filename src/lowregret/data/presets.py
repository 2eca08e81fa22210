"""Short names for the hub's usual sets of problems: where they lie, which columns they have, what fits them in RL.

A preset fills the fields that were left at their default and nothing else. The rows of a local copy are read by the
same columns: `--columns question=problem,answer=solution`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import overload

from lowregret.specs import DataSpec, RewardSpec, RLSpec

BOXED = "{question}\n\nReason step by step and put the final answer in \\boxed{}.\n\nSolution:"
"""For chat models the user's turn; a base model without a chat template goes on after `Solution:`. The answer is asked
for in a box because that is where one is found without a guess."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A data set of the hub.

    >>> PRESETS["gsm8k"].source
    'openai/gsm8k'
    """

    source: str
    config: str | None = None
    columns: tuple[tuple[str, str], ...]
    """Renames for the format `question-answer`. Said, not found: some sets have a column `messages` beside them."""
    rewards: tuple[RewardSpec, ...] = (RewardSpec(source="math"),)
    template: str = BOXED


PRESETS = {
    # 7,473 problems and 1,319 of its own test split; the answer is a solution that ends in `#### 72`.
    "gsm8k": Preset(source="openai/gsm8k", config="main", columns=()),
    # 7,500 and 5,000; the answer is a solution with a box. This mirror has all subjects in one configuration.
    "math": Preset(
        source="DigitalLearningGmbH/MATH-lighteval",
        config="default",
        columns=(("question", "problem"), ("answer", "solution")),
    ),
    # 103,110, no test split.
    "deepmath": Preset(source="zwhe99/DeepMath-103K", columns=(("answer", "final_answer"),)),
    # 93,733 of the configuration that its makers found to be the better one, no test split.
    "openr1-math": Preset(source="open-r1/OpenR1-Math-220k", config="default", columns=(("question", "problem"),)),
}


@overload
def with_preset(spec: DataSpec, rl: None = None) -> tuple[DataSpec, None]: ...
@overload
def with_preset(spec: DataSpec, rl: RLSpec) -> tuple[DataSpec, RLSpec]: ...
def with_preset(spec: DataSpec, rl: RLSpec | None = None) -> tuple[DataSpec, RLSpec | None]:
    """The specs with what the preset of that name adds; as they are where `spec.source` names none.

    Format and columns belong together: who gives either is left with both. So do rewards and template: a template asks
    for the form in which its reward finds the answer. No rewards are written as `rewards=()`; for a preset's rewards
    and the bare question, give the template `{question}`.

    >>> spec, rl = with_preset(DataSpec(source="gsm8k"), RLSpec(rewards=()))
    >>> (spec.source, spec.config, rl.rewards[0].source)
    ('openai/gsm8k', 'main', 'math')
    """
    preset = PRESETS.get(spec.source)
    if preset is None:
        return spec, rl
    config = preset.config if spec.config is None else spec.config
    filled = replace(spec, source=preset.source, config=config)
    if spec.format == DataSpec.format and not spec.columns:
        filled = replace(filled, format="question-answer", columns=preset.columns)
    if rl is None:
        return filled, None
    fits = not rl.rewards or rl.rewards == preset.rewards
    template = preset.template if rl.template is None and fits else rl.template
    return filled, replace(rl, rewards=rl.rewards or preset.rewards, template=template)
