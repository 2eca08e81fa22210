"""Groups of scored completions: what a step of RL learns from, and what an evaluation counts.

Guarantee: a rollout is a function of the slot's weights, the problem and the seed numbers given; who is sampled beside
it does not matter (`sampling.sampler`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from lowregret.batches import Completion, Rollout, RolloutGroup
from lowregret.data.problems import PromptProblem
from lowregret.data.tokenizer import TextTokenizer
from lowregret.sampling.engine import Draws
from lowregret.sampling.sampler import Request
from lowregret.specs import Problem, Score


@runtime_checkable
class Scores(Protocol):
    """Scores answers, in order (`rewards.scorer.Scorer`)."""

    def score(self, answers: Sequence[tuple[Problem, str]]) -> list[Score]: ...


def rollout_seed(*numbers: int) -> int:
    """64 bits from the numbers that tell a group from every other: seed, step, round, problem."""
    digest = hashlib.blake2b("/".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def rollout_groups(
    sampler: Draws,
    scorer: Scores,
    tokenizer: TextTokenizer,
    wanted: Mapping[str | None, Sequence[tuple[int, PromptProblem, tuple[int, ...]]]],
) -> dict[str | None, list[RolloutGroup]]:
    """Sample and score.

    Args:
        wanted: by slot (None is the base), index and problem with the seed of each completion.

    Returns:
        By slot the groups, in the order of the problems.
    """
    order = [(slot, *item) for slot, items in wanted.items() for item in items]
    requests = [Request(slot=slot, prompt=problem.tokens, seeds=seeds) for slot, _, problem, seeds in order]
    sampled = sampler.sample(requests)
    texts = [[completion_text(completion, tokenizer) for completion in own] for own in sampled]
    answers = [(problem.problem, text) for (_, _, problem, _), own in zip(order, texts, strict=True) for text in own]
    scores = iter(scorer.score(answers))
    groups: dict[str | None, list[RolloutGroup]] = {slot: [] for slot in wanted}
    for (slot, index, problem, _), own, own_texts in zip(order, sampled, texts, strict=True):
        rollouts: list[Rollout] = []
        for completion, text in zip(own, own_texts, strict=True):
            score = next(scores)
            rollouts.append(Rollout(completion=completion, text=text, reward=score.value, failure=score.failure))
        groups[slot].append(RolloutGroup(problem=index, prompt=problem.tokens, rollouts=tuple(rollouts)))
    return groups


def completion_text(completion: Completion, tokenizer: TextTokenizer) -> str:
    """What is scored: the completion's text, without an end token."""
    tokens = completion.tokens.tolist()
    if completion.stopped and tokens[-1] in tokenizer.stop_token_ids:
        tokens = tokens[:-1]
    return tokenizer.decode(tokens)
