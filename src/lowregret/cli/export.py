"""`lowregret export`: a slot of a run as a PEFT folder or a merged model, read back before it says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lowregret.cli.flags import Export
from lowregret.cli.prepare import Notify, notify_on, require_same, silence_transformers, tokenize
from lowregret.data.examples import ExampleStore
from lowregret.data.tokenizer import TextTokenizer
from lowregret.errors import CheckpointError, DataError, ExportError, SpecError
from lowregret.models.locate import ModelFolder, locate_model
from lowregret.specs import AdapterSpec, SlotSpec
from lowregret.store import RunDirectory

if TYPE_CHECKING:
    from lowregret.export.write import MergedModel


def export(command: Export) -> int:
    """Write the slot; 0."""
    notify = notify_on(Console(stderr=True))
    run = RunDirectory.open(command.run)
    slot = chosen_slot(run, command.slot)
    _refuse_idle(command, slot)
    _require_trained(run, slot)
    silence_transformers()
    model = locate_model(run.spec.model, notify=notify)
    require_same(run, model=model)
    if command.merge or not isinstance(slot.weights, AdapterSpec):
        result = _write_model(command, run, slot, model, notify)
    else:
        result = _write_adapter(command, run, slot, model)
    if command.push is not None:
        result["pushed"] = _push(command.out, command.push, notify)
    _print(command, result)
    return 0


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


def _refuse_idle(command: Export, slot: SlotSpec) -> None:
    whole_model = command.merge or not isinstance(slot.weights, AdapterSpec)
    if command.rounding is not None and not whole_model:
        raise SpecError("--rounding: only merged weights are rounded; add --merge or leave it out")
    if command.rounding is not None and command.dtype == "fp32":
        raise SpecError("--rounding: fp32 weights are not rounded; leave it out")


def _write_adapter(command: Export, run: RunDirectory, slot: SlotSpec, model: ModelFolder) -> dict[str, Any]:
    from lowregret.export.write import export_adapter

    source = run.adapter_folder(slot.name)
    folder = export_adapter(source, command.out, model=model, dtype=command.dtype or "fp32")
    return {"kind": "adapter", "slot": slot.name, "folder": str(folder)}


def _write_model(
    command: Export, run: RunDirectory, slot: SlotSpec, model: ModelFolder, notify: Notify
) -> dict[str, Any]:
    from lowregret.adapters.peft_format import read_adapter
    from lowregret.data.packing import examples_of
    from lowregret.export.write import export_full, export_merged
    from lowregret.training.checkpoint import read_masters

    dtype, rounding = command.dtype or "bf16", command.rounding or "stochastic"
    if isinstance(slot.weights, AdapterSpec):
        held_out = _held_out(run, model, notify)
        written = export_merged(
            read_adapter(run.adapter_folder(slot.name)),
            command.out,
            model=model,
            dtype=dtype,
            rounding=rounding,
            examples=[] if held_out is None else examples_of(held_out),
            tokens_per_microbatch=run.plan.tokens_per_microbatch,
            notify=notify,
        )
    else:
        masters = read_masters(_last_checkpoint(run, notify), slot.name)
        written = export_full(masters, command.out, model=model, dtype=dtype, rounding=rounding)
    return {"kind": "model", "slot": slot.name, "dtype": dtype, **_shares(written)}


def _held_out(run: RunDirectory, model: ModelFolder, notify: Notify) -> ExampleStore | None:
    """The test split that the surviving share is measured on; None in RL, and where the data is not here any more."""
    if run.spec.task == "rl":
        notify("the surviving share of the loss drop is not measured: reinforcement learning lowers no loss")
        return None
    try:
        data = tokenize(run.spec.data, TextTokenizer.from_folder(model.path), notify)
        require_same(run, model=model, data=data)
    except (DataError, CheckpointError) as error:
        notify(f"the surviving share of the loss drop is not measured: {error}")
        return None
    return data.test


def _last_checkpoint(run: RunDirectory, notify: Notify) -> Path:
    latest = run.latest_checkpoint(on_skip=notify)
    if latest is None:
        raise ExportError(f"{run.path}: has no whole checkpoint; train it again")
    return latest[1]


def _shares(written: MergedModel) -> dict[str, Any]:
    """Where the model lies, and how much of the update is in it."""
    shares: dict[str, Any] = {"folder": str(written.folder)}
    if written.weights is not None:
        shares["share_of_update"] = written.weights.share_of_update
        shares["share_of_weights_moved"] = written.weights.share_of_weights_moved
    if written.fidelity is not None:
        shares["share_of_loss_drop"] = written.fidelity.estimate
        shares["share_of_loss_drop_interval"] = [written.fidelity.low, written.fidelity.high]
    return shares


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
    if "share_of_loss_drop" in result:
        low, high = result["share_of_loss_drop_interval"]
        share = result["share_of_loss_drop"]
        print(f"share of the loss drop that survives: {share:.3f} (95 % interval {low:.3f} to {high:.3f})")
    if "pushed" in result:
        print(f"uploaded: {result['pushed']}")
