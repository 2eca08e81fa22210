"""`lowregret plan`: what a run would do and why, without weights. No torch, unless `--measure` asks for the weights."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, replace

from rich.console import Console

from lowregret.cli.bases import ensure_bases
from lowregret.cli.flags import Plan
from lowregret.cli.machine import confirm_device, device_facts, planned_facts
from lowregret.cli.prepare import (
    Notify,
    notify_on,
    request_of,
    silence_transformers,
    tokenize,
    with_reasons,
    with_slots,
)
from lowregret.cli.reading import flag_name
from lowregret.cli.tables import print_plan
from lowregret.data.generated import fact_bits
from lowregret.data.load import TokenizedData
from lowregret.data.problems import ProblemData, load_problems
from lowregret.data.tokenizer import TextTokenizer
from lowregret.errors import SpecError
from lowregret.models.locate import ModelFolder, locate_model
from lowregret.planner.describe import plan_mapping
from lowregret.planner.emit import emit
from lowregret.planner.flops import flops
from lowregret.planner.information import (
    completion_information,
    known_information,
    measured_information,
    reward_information,
)
from lowregret.planner.recommend import stated_facts
from lowregret.planner.resolve import USUAL_MICROBATCH, dtype_of, resolve
from lowregret.planner.shapes import read_shape
from lowregret.planner.targets import select
from lowregret.specs import AdapterSpec, DataFacts, DeviceFacts, Information, ResolvedPlan, RunSpec
from lowregret.specs.codec import to_toml
from lowregret.specs.shape import ModelShape
from lowregret.store.atomic import write_text

FACTS = "facts"
"""The generated set whose bits are known."""
OPERATIONS_A_MAC = 2
"""A multiply-add counts as two in a device's TFLOP/s."""


def plan(command: Plan) -> int:
    """Print the plan, or another tool's configuration; 0."""
    _refuse_idle(command)
    console = Console(stderr=True)
    notify = notify_on(console)
    request = request_of(command)
    _refuse_other_task(command, request.spec)
    ensure_bases([request.spec.model], notify=notify)
    model = locate_model(request.spec.model, weights=command.measure, notify=notify)
    data = _data(request.spec, model, notify) if command.tokens is None else None
    facts = _stated(command.tokens, request.spec) if data is None else data.facts
    shape = read_shape(model.path)
    device = request.spec.hardware.device
    machine = device_facts(device) if command.measure else planned_facts(device, notify)
    learned = _learned(command, request.spec, facts, model, data, shape, machine, notify)
    information = learned.information
    if command.bits_per_parameter is not None:
        information = replace(information, bits_per_parameter=command.bits_per_parameter)
    spec, reasons = with_slots(request, command, shape, facts, machine, information)
    # A plan is often made for another machine, so what does not fit here is a warning, no refusal.
    resolved = resolve(spec, shape=shape, facts=facts, hardware=machine, information=information, must_fit=False)
    resolved = with_reasons(resolved, reasons)
    if command.out is not None:
        write_text(command.out, to_toml(resolved))
        runs = f"; run it with: lowregret {spec.task} {command.out}" if command.tokens is None else ""
        notify(f"wrote {command.out}{runs}")
    _print(command, resolved, shape, learned.macs_per_second, machine)
    return 0


@dataclass(frozen=True, kw_only=True)
class _Learned:
    """What was measured or stated beyond counts."""

    information: Information
    macs_per_second: float | None


def _refuse_idle(command: Plan) -> None:
    """Refuse what nothing would use, and what would be lost."""
    if command.spec is not None and command.task is not None:
        raise SpecError(f"--task: {command.spec} says what the task is; leave the flag out or change the file")
    if command.out is not None and command.out.exists():
        raise SpecError(f"--out: {command.out} exists; name another file, or remove it")
    if command.measure and command.tokens is not None:
        raise SpecError("--measure: needs the data itself; give --data instead of --tokens")
    if command.measure and command.tflops is not None:
        raise SpecError("--tflops: --measure times this machine; leave one of them out")
    if command.tflops is not None and not 0 < command.tflops < math.inf:
        raise SpecError(f"--tflops: {command.tflops:g} must be positive; give the device's speed")
    if command.bits_per_parameter is not None and not 0 < command.bits_per_parameter < math.inf:
        raise SpecError(f"--bits-per-parameter: {command.bits_per_parameter:g} must be positive; 2 is the default")
    if command.measure and command.data.data == FACTS:
        raise SpecError("--measure: the bits of facts are known exactly; leave it out")
    if command.emit is not None and command.json:
        raise SpecError("--emit: prints a configuration, not JSON; leave --json out")


def _refuse_other_task(command: Plan, spec: RunSpec) -> None:
    """Refuse what the other task would use."""
    if spec.task != "rl":
        for field in ("reward_bins", "pass_rate"):
            if getattr(command, field) is not None:
                raise SpecError(f"{flag_name(field)}: is for --task rl; add that or leave it out")
    elif command.measure:
        raise SpecError("--measure: the bits of RL are in its rewards; give --pass-rate instead")


def _data(spec: RunSpec, model: ModelFolder, notify: Notify) -> TokenizedData | ProblemData:
    """The run's examples, or its problems; no scorer is asked whether it can read their answers."""
    tokenizer = TextTokenizer.from_folder(model.path)
    return tokenize(spec.data, tokenizer, notify) if spec.rl is None else load_problems(spec.data, spec.rl, tokenizer)


def _stated(tokens: int | None, spec: RunSpec) -> DataFacts:
    assert tokens is not None
    facts = stated_facts(tokens)
    return replace(facts, longest=min(facts.longest, spec.data.max_length))


def _learned(
    command: Plan,
    spec: RunSpec,
    facts: DataFacts,
    model: ModelFolder,
    data: TokenizedData | ProblemData | None,
    shape: ModelShape,
    machine: DeviceFacts,
    notify: Notify,
) -> _Learned:
    """Bits in the data and speed of the device, as far as they are measured or stated."""
    speed = machine.macs_per_second if command.tflops is None else command.tflops * 1e12 / OPERATIONS_A_MAC
    if spec.task == "rl":
        information = reward_information(
            spec,
            facts,
            reward_bins=2 if command.reward_bins is None else command.reward_bins,
            pass_rate=command.pass_rate,
        )
        return _Learned(information=information, macs_per_second=speed)
    if spec.data.source == FACTS and data is not None:
        bits = fact_bits(facts.num_examples)
        return _Learned(information=known_information(spec, facts, bits=bits, unit=FACTS), macs_per_second=speed)
    if not command.measure:
        return _Learned(information=completion_information(spec, facts), macs_per_second=speed)
    assert isinstance(data, TokenizedData)
    return _measured(spec, model, data, shape, machine, notify)


def _measured(
    spec: RunSpec, model: ModelFolder, data: TokenizedData, shape: ModelShape, machine: DeviceFacts, notify: Notify
) -> _Learned:
    from lowregret.training.base_loss import PROBE, SAMPLE, measure_base

    silence_transformers()
    notify(f"measuring the base model's loss on {min(SAMPLE, len(data.train))} training examples")
    machine = confirm_device(spec.hardware.device, machine)
    found = measure_base(
        model,
        data.train,
        dtype=dtype_of(spec, machine),
        device=machine.kind if spec.hardware.device == "auto" else spec.hardware.device,
        threads=spec.hardware.threads or machine.threads,
        tokens_per_microbatch=USUAL_MICROBATCH[machine.kind],
    )
    information = measured_information(
        spec, data.facts, nll=found.nll, low=found.low, high=found.high, num_examples=found.num_examples
    )
    adapted = select(shape, PROBE.targets, unembed=PROBE.unembed)
    cost = flops(shape, method="lora", adapted=adapted, rank=PROBE.rank, mean_length=data.facts.mean_length)
    macs = cost.of_run(found.step_tokens, found.step_completion_tokens)
    return _Learned(information=information, macs_per_second=macs / found.step_seconds)


def _print(
    command: Plan, resolved: ResolvedPlan, shape: ModelShape, macs_per_second: float | None, machine: DeviceFacts
) -> None:
    memory_bytes = resolved.spec.hardware.memory_bytes or machine.memory_bytes
    if command.emit is not None:
        adapters = [slot.name for slot in resolved.spec.slots if isinstance(slot.weights, AdapterSpec)]
        if len(adapters) > 1:
            raise SpecError(f"--emit: one adapter a file, the plan has {', '.join(adapters)}; give one rank and one lr")
        sys.stdout.write(emit(resolved, shape, command.emit))
    elif command.json:
        mapping = plan_mapping(resolved, shape, macs_per_second=macs_per_second, memory_bytes=memory_bytes)
        json.dump(mapping, sys.stdout)
        sys.stdout.write("\n")
    else:
        print_plan(resolved, shape, Console(), macs_per_second=macs_per_second, memory_bytes=memory_bytes)
