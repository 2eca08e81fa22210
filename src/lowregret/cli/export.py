"""`lowregret export`: a slot of a run, or an adapter's folder, as a PEFT folder or a merged model.

Guarantees: it is read back before it says so; a model in bf16 is verified on the run's held-out documents before it is
written, or it says why not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lowregret.cli.flags import Export
from lowregret.cli.prepare import Notify, notify_on, require_same, silence_transformers, tokenize
from lowregret.data.tokenizer import TextTokenizer
from lowregret.errors import CheckpointError, DataError, ExportError, SpecError
from lowregret.models.locate import ModelFolder, locate_model
from lowregret.specs import AdapterSpec, ModelSpec, SlotSpec
from lowregret.store import RunDirectory

if TYPE_CHECKING:
    from lowregret.batches import TokenizedExample
    from lowregret.export.write import MergedModel

ADAPTER_CONFIG = "adapter_config.json"
"""What a folder of PEFT's holds. `adapters.peft_format` has it too, and would load torch before a flag is refused."""

VERIFY_DOCUMENTS = 64
"""Held-out documents that a model is verified on where no number is given: four readings of each, two of them in fp32,
take minutes for a model of 135 million weights on two cores. What they can't resolve asks for more."""

SWALLOWED = 0.95
"""Share of the update under which rounding to nearest is named as the reason."""

STANDALONE_TOKENS = 2048
"""Tokens of a micro-batch where no run's plan says; of use only for what is not verified, which needs none."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is exported.

    >>> sorted(Source.__dataclass_fields__)
    ['adapter', 'model', 'name', 'run']
    """

    name: str
    """The slot's, or the adapter folder's."""
    adapter: Path | None
    """In PEFT layout; None for full fine-tuning, whose weights lie in a checkpoint."""
    run: RunDirectory | None
    """None for an adapter's folder."""
    model: ModelFolder


@dataclass(frozen=True, kw_only=True)
class Documents:
    """What a model can be verified on.

    >>> Documents(examples=(), held_out=0, missing="an adapter's folder has no data").held_out
    0
    """

    examples: Sequence[TokenizedExample]
    held_out: int
    """Documents that the run holds out in all."""
    missing: str | None
    """Why there are none."""


def export(command: Export) -> int:
    """Write what was asked for; 0."""
    notify = notify_on(Console(stderr=True))
    standalone = (command.run / ADAPTER_CONFIG).is_file()
    source = _adapter_folder(command, notify) if standalone else _slot_of_run(command, notify)
    if command.merge or source.adapter is None:
        result = _write_model(command, source, notify)
    else:
        result = _write_adapter(command, source.adapter, source)
    if command.push is not None:
        result["pushed"] = _push(command.out, command.push, notify)
    _print(command, result)
    return 0


def _slot_of_run(command: Export, notify: Notify) -> Source:
    run = RunDirectory.open(command.run)
    slot = chosen_slot(run, command.slot)
    adapted = isinstance(slot.weights, AdapterSpec)
    _refuse_idle(command, whole_model=command.merge or not adapted)
    if command.model is not None:
        raise SpecError("--model: a run knows its base; leave it out")
    if command.verify_documents and run.spec.task == "rl":
        raise SpecError("--verify-documents: reinforcement learning lowers no loss to compare; leave it out")
    _require_trained(run, slot)
    silence_transformers()
    model = locate_model(run.spec.model, notify=notify)
    require_same(run, model=model)
    return Source(name=slot.name, adapter=run.adapter_folder(slot.name) if adapted else None, run=run, model=model)


def _adapter_folder(command: Export, notify: Notify) -> Source:
    """A folder that stands alone: its base is what it names, or `--model`."""
    from lowregret.adapters.peft_format import read_adapter

    _refuse_idle(command, whole_model=command.merge)
    if command.slot is not None:
        raise SpecError("--slot: an adapter's folder has none; leave it out")
    if command.verify_documents:
        raise SpecError(
            "--verify-documents: an adapter's folder has no held-out documents; give the run, or leave it out"
        )
    base = command.model or read_adapter(command.run).base_model
    if not base:
        raise SpecError(f"--model: {command.run / ADAPTER_CONFIG} does not name its base; give it")
    silence_transformers()
    model = locate_model(ModelSpec(source=base), notify=notify)
    return Source(name=command.run.name, adapter=command.run, run=None, model=model)


def chosen_slot(run: RunDirectory, name: str | None) -> SlotSpec:
    """The slot of that name, or the only one.

    Raises:
        SpecError: there is no such slot, or there are several and none was named.
    """
    slots = {slot.name: slot for slot in run.spec.slots}
    known = ", ".join(slots)
    if name is None:
        if len(slots) > 1:
            raise SpecError(f"--slot: the run has several; name one of {known}")
        return next(iter(slots.values()))
    if name not in slots:
        raise SpecError(f"--slot: {run.path} has no slot {name!r}; name one of {known}")
    return slots[name]


def _require_trained(run: RunDirectory, slot: SlotSpec) -> None:
    if run.summary is None:
        raise ExportError(
            f"{run.path}: the run is not finished; go on with it: lowregret {run.spec.task} --resume {run.path}"
        )
    if run.summary["slots"][slot.name].get("stopped"):
        raise ExportError(
            f"--slot {slot.name}: it was stopped early, since another rate was surely better; name that slot, or train "
            "without train.drop_dominated"
        )
    if run.summary["slots"][slot.name]["diverged"]:
        raise ExportError(f"--slot {slot.name}: it diverged and was retired; name another slot")


def _refuse_idle(command: Export, *, whole_model: bool) -> None:
    for flag, given in (("--rounding", command.rounding), ("--verify-documents", command.verify_documents)):
        if given is not None and not whole_model:
            raise SpecError(f"{flag}: only merged weights are rounded; add --merge or leave it out")
        if given is not None and command.dtype == "fp32":
            raise SpecError(f"{flag}: fp32 weights are not rounded; leave it out")
    if command.verify_documents is not None and (command.verify_documents < 0 or command.verify_documents == 1):
        raise SpecError(
            f"--verify-documents is {command.verify_documents}: an interval needs 2 or more; 0 leaves it unverified"
        )


def _write_adapter(command: Export, adapter: Path, source: Source) -> dict[str, Any]:
    from lowregret.export.write import export_adapter

    folder = export_adapter(adapter, command.out, model=source.model, dtype=command.dtype or "fp32")
    return {"kind": "adapter", "slot": source.name, "folder": str(folder)}


def _write_model(command: Export, source: Source, notify: Notify) -> dict[str, Any]:
    from lowregret.adapters.peft_format import read_adapter
    from lowregret.export.write import export_full, export_merged
    from lowregret.training.checkpoint import read_masters

    dtype, rounding = command.dtype or "bf16", command.rounding or "stochastic"
    documents = _documents(command, source, notify)
    settings: dict[str, Any] = {
        "model": source.model,
        "dtype": dtype,
        "rounding": rounding,
        "examples": documents.examples,
        "tokens_per_microbatch": STANDALONE_TOKENS if source.run is None else source.run.plan.tokens_per_microbatch,
        "notify": notify,
    }
    if source.adapter is not None:
        written = export_merged(read_adapter(source.adapter), command.out, **settings)
    else:
        assert source.run is not None
        masters = read_masters(_last_checkpoint(source.run, notify), source.name)
        written = export_full(masters, command.out, **settings)
    return {
        "kind": "model",
        "slot": source.name,
        "dtype": dtype,
        "rounding": None if dtype == "fp32" else rounding,
        "folder": str(written.folder),
        "share_of_update": written.weights.share_of_update,
        "share_of_weights_moved": written.weights.share_of_weights_moved,
        "fidelity": _fidelity(written, documents),
    }


def _documents(command: Export, source: Source, notify: Notify) -> Documents:
    """Held-out documents of the run, or the reason why there are none. What was asked for by number must be there."""
    missing = None
    if command.dtype == "fp32":
        missing = "fp32 weights are not rounded; the logits equal those of what was trained"
    elif command.verify_documents == 0:
        missing = "--verify-documents 0"
    elif source.run is None:
        missing = "an adapter's folder has no held-out documents"
    elif source.run.spec.task == "rl":
        missing = "reinforcement learning lowers no loss to compare"
    if source.run is None or missing is not None:
        return Documents(examples=(), held_out=0, missing=missing)
    try:
        return _held_out(source.run, source.model, command.verify_documents or VERIFY_DOCUMENTS, notify)
    except (DataError, CheckpointError) as error:
        if command.verify_documents is not None:
            raise
        return Documents(examples=(), held_out=0, missing=str(error))


def _held_out(run: RunDirectory, model: ModelFolder, most: int, notify: Notify) -> Documents:
    from lowregret.data.packing import example_of

    data = tokenize(run.spec.data, TextTokenizer.from_folder(model.path), notify)
    require_same(run, model=model, data=data)
    stores = (data.validation, data.test)
    every = (example_of(store, index) for store in stores for index in range(len(store)))
    return Documents(examples=tuple(islice(every, most)), held_out=sum(map(len, stores)), missing=None)


def _last_checkpoint(run: RunDirectory, notify: Notify) -> Path:
    latest = run.latest_checkpoint(on_skip=notify)
    if latest is None:
        raise ExportError(f"{run.path}: has no whole checkpoint; train it again")
    return latest[1]


def _fidelity(written: MergedModel, documents: Documents) -> dict[str, Any]:
    """The verdict with what it rests on, or why there is none."""
    verification = written.verification
    if verification is None:
        return {"verdict": "not measured", "reason": documents.missing}
    found = verification.fidelity
    fidelity: dict[str, Any] = {
        "verdict": found.verdict,
        "estimate": found.estimate,
        "interval": [found.low, found.high],
        "fp32_drop": found.fp32_drop,
        "sequences": verification.sequences,
        "held_out": documents.held_out,
    }
    if found.verdict == "not resolved":
        fidelity["sequences_needed"] = verification.needed
    return fidelity


def _push(folder: Path, repository: str, notify: Notify) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    notify(f"uploading {folder} to {repository}")
    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ExportError(
            f"--push {repository}: {reason}; {folder} is written, log in with `hf auth login` and repeat the upload"
        ) from error


def _print(command: Export, result: dict[str, Any]) -> None:
    if command.json:
        json.dump(result, sys.stdout)
        sys.stdout.write("\n")
        return
    print(f"{result['kind']} of slot {result['slot']} written to {result['folder']}, read back equal")
    if "share_of_update" in result:
        share, moved = result["share_of_update"], result["share_of_weights_moved"]
        swallowed = result["rounding"] == "nearest" and share < SWALLOWED
        print(
            f"share of the update that the weights hold: {share:.3f} ({moved:.1%} of the weights moved)"
            + ("; --rounding stochastic holds all of it on average" if swallowed else "")
        )
        print(f"forward fidelity: {_verdict(result['fidelity'])}")
    if "pushed" in result:
        print(f"uploaded: {result['pushed']}")


def _verdict(fidelity: dict[str, Any]) -> str:
    """One line: the verdict, the numbers behind it, and where it is not resolved what would resolve it."""
    verdict = fidelity["verdict"]
    if verdict == "not measured":
        return f"not measured: {fidelity['reason']}"
    low, high = fidelity["interval"]
    line = (
        f"{verdict}: {fidelity['estimate']:.3f} of the fp32 loss drop of {fidelity['fp32_drop']:.4f} nats "
        f"(95 % interval {low:.3f} to {high:.3f}, {fidelity['sequences']} held-out documents)"
    )
    if verdict != "not resolved":
        return line
    needed, held_out = fidelity["sequences_needed"], fidelity["held_out"]
    if needed <= held_out:
        return f"{line}; about {needed:,} documents would resolve it: --verify-documents {needed}"
    return (
        f"{line}; about {needed:,} documents would resolve it and the run holds out {held_out:,}: train with a larger "
        "--validation-size"
    )
