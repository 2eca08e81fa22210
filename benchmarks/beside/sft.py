"""One training step of ours and of TRL's, with an adapter or with all weights: contenders, checks, and their summary.

A contender's name is `side-method-format`, such as `ours-lora-bf16` or `trl-full-autocast`. Each turn is a process of
its own, so that its peak memory is its own. What is checked: the loss of the first batch, all losses where both sides
compute in fp32, and the cosine of the gradients of ours to those of autograd in fp32.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from beside.envelope import Answer
from beside.ours import gradients_of_ours, train_ours, training_job, write_start
from beside.trl_sft import FORMATS, gradients_of_peer, train_trl
from beside.turns import give, in_process_of_its_own, median, say, take_turns

Turns = dict[str, list[dict[str, Any]]]


def run_child(name: str, job: dict[str, Any]) -> None:
    """What a contender's process does: a turn, or gradients to a file."""
    import torch

    torch.set_num_threads(job["threads"])
    if name == "start":
        give({"start": str(write_start(job, random_b=False)), "random_start": str(write_start(job, random_b=True))})
        return
    what, _, rest = name.partition(":")
    side, method, number_format = rest.split("-")
    own = job | {"method": method}
    if what == "turn":
        give(train_ours(own, number_format) if side == "ours" else train_trl(own, number_format))
        return
    from safetensors.torch import save_file

    found = gradients_of_ours(own, number_format) if side == "ours" else gradients_of_peer(own)
    save_file({key: value.float().contiguous() for key, value in found.items()}, gradient_file(job, rest))
    give({})


def gradient_file(job: dict[str, Any], name: str) -> Path:
    """Where a contender leaves its gradients."""
    return Path(job["scratch"]) / f"{name}.safetensors"


class Sft:
    """The processes of one training benchmark."""

    def __init__(self, script: str, arguments: argparse.Namespace, method: str, scratch: Path) -> None:
        self.script, self.arguments, self.scratch = script, arguments, scratch
        self.job = training_job(arguments, method, scratch) | {"checked": arguments.checked}
        if method == "lora":
            self.job |= self._process("start", self.job)

    def turn(self, name: str, **changes: Any) -> dict[str, Any]:
        """One contender's turn."""
        return self._process(f"turn:{name}", self.job | changes)

    def turns(self, label: str, names: list[str]) -> Turns:
        """All contenders in turn, as often as the arguments say."""
        return take_turns(label, names, self.arguments.rounds, self.turn, describe)

    def checks(self, turns: Turns, ours: str, peer: str) -> dict[str, Any]:
        """Correctness beside the speed: losses, and the cosines of gradients."""
        method = ours.split("-")[1]
        found: dict[str, Any] = {
            "first_loss_difference": abs(turns[ours][0]["losses"][0] - turns[peer][0]["losses"][0]),
        }
        fp32 = {side: f"{side}-{method}-fp32" for side in ("ours", "trl")}
        losses: dict[str, list[float]] = {}
        for side, name in fp32.items():
            if name not in turns:
                say(f"checking: losses of {name}")
            own = turns[name][0] if name in turns else self.turn(name, steps=min(3, self.arguments.steps))
            losses[side] = own["losses"]
        pairs = list(zip(losses["ours"], losses["trl"], strict=False))
        found["fp32_losses_compared"] = len(pairs)
        found["largest_fp32_loss_difference"] = max(abs(a - b) for a, b in pairs)
        found["sequences_of_gradients"] = self.arguments.checked
        return found | self._cosines(method, ours.split("-")[2])

    def _cosines(self, method: str, timed: str) -> dict[str, float]:
        names = {"bf16": f"ours-{method}-bf16", "fp32": f"ours-{method}-fp32", "peer": f"trl-{method}-fp32"}
        for name in names.values():
            say(f"checking: gradients of {name}")
            self._process(f"gradients:{name}", self.job)
        files = {key: gradient_file(self.job, name) for key, name in names.items()}
        return {
            "gradient_cosine_bf16_to_fp32": cosine(files["bf16"], files["fp32"]),
            "gradient_cosine_bf16_to_peer_fp32": cosine(files["bf16"], files["peer"]),
            "gradient_cosine_fp32_to_peer_fp32": cosine(files["fp32"], files["peer"]),
            "gradient_cosine_timed_to_peer_fp32": cosine(files[timed], files["peer"]),
        }

    def _process(self, name: str, job: dict[str, Any]) -> dict[str, Any]:
        file = self.scratch / "job.json"
        file.write_text(json.dumps(job))
        return in_process_of_its_own(
            [self.script, "--child", name, "--job", str(file)], name, threads=self.arguments.threads
        )


def cosine(one: Path, other: Path) -> float:
    """Of all gradients of two files, as one vector each, summed in fp64."""
    from safetensors import safe_open

    dot = own = its = 0.0
    with safe_open(one, "pt") as a, safe_open(other, "pt") as b:
        assert sorted(a.keys()) == sorted(b.keys()), sorted(set(a.keys()) ^ set(b.keys()))[:4]
        for key in a.keys():  # noqa: SIM118 (no mapping)
            x, y = a.get_tensor(key).flatten().double(), b.get_tensor(key).flatten().double()
            dot, own, its = dot + float(x @ y), own + float(x @ x), its + float(y @ y)
    return dot / (own * its) ** 0.5


def speeds(turn: dict[str, Any]) -> list[float]:
    """Real tokens a second of each step after the first."""
    return [tokens / seconds for tokens, seconds in zip(turn["tokens"][1:], turn["seconds"][1:], strict=True)]


def describe(turn: dict[str, Any]) -> str:
    """One line for whoever waits."""
    losses = ", ".join(f"{loss:.4f}" for loss in turn["losses"])
    return f"{median(speeds(turn)):.0f} tokens/s, {turn['peak_mib']:.0f} MiB, losses {losses}"


def medians(turns: Turns) -> dict[str, dict[str, float]]:
    """Of each contender, over all steps but the first of each turn."""
    return {
        name: {
            "tokens_per_second": median(speed for turn in own for speed in speeds(turn)),
            "seconds_a_step": median(seconds for turn in own for seconds in turn["seconds"][1:]),
            "peak_mib": median(turn["peak_mib"] for turn in own),
        }
        for name, own in turns.items()
    }


def rows(turns: Turns) -> list[dict[str, Any]]:
    """What each contender was."""
    return [
        {
            "contender": name,
            "format": FORMATS[name.split("-")[2]],
            "measurements": sum(len(turn["seconds"]) - 1 for turn in own),
        }
        for name, own in turns.items()
    ]


def answer(found: dict[str, dict[str, float]], ours: str, peer: str, quantity: str, unit: str) -> Answer:
    """Ours over the peer in one quantity."""
    return Answer(
        ours=found[ours][quantity],
        peer=found[peer][quantity],
        unit=unit,
        ours_was=spoken(ours),
        peer_was=spoken(peer),
    )


def spoken(contender: str) -> str:
    """A contender's name in words."""
    side, method, number_format = contender.split("-")
    who = "lowregret" if side == "ours" else "TRL + PEFT" if method == "lora" else "TRL"
    return f"{who}, {FORMATS[number_format]}"
