"""`lowregret plan`: what a run would do and why, without weights. No torch."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

from rich.console import Console

from lowregret.cli.flags import Plan
from lowregret.cli.machine import device_facts
from lowregret.cli.prepare import notify_on, request_of, tokenize, with_reasons, with_slots
from lowregret.cli.tables import print_plan
from lowregret.data.tokenizer import TextTokenizer
from lowregret.models.locate import locate_model
from lowregret.planner.describe import plan_mapping
from lowregret.planner.recommend import stated_facts
from lowregret.planner.resolve import resolve
from lowregret.planner.shapes import read_shape


def plan(command: Plan) -> int:
    """Print the plan; 0."""
    notify = notify_on(Console(stderr=True))
    request = request_of(command)
    model = locate_model(request.spec.model, notify=notify)
    if command.tokens is None:
        facts = tokenize(request.spec.data, TextTokenizer.from_folder(model.path), notify).facts
    else:
        facts = stated_facts(command.tokens)
        facts = replace(facts, longest=min(facts.longest, request.spec.data.max_length))
    shape = read_shape(model.path)
    spec, reasons = with_slots(request, command, shape, facts)
    machine = device_facts(spec.hardware.device)
    # A plan is often made for another machine, so what does not fit here is a warning, no refusal.
    resolved = resolve(spec, shape=shape, facts=facts, hardware=machine, must_fit=False)
    resolved = with_reasons(resolved, reasons)
    if command.json:
        json.dump(plan_mapping(resolved, shape), sys.stdout)
        sys.stdout.write("\n")
    else:
        print_plan(resolved, shape, Console())
    return 0
