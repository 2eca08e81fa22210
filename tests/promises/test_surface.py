"""Promise: the options of the command line and the public signatures, as literal lists. A change here is a decision."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest

import lowregret
from lowregret.cli.main import run

DATA = """
--model TEXT
--revision TEXT
--data TEXT
--config TEXT
--split TEXT
--test-split TEXT
--test-data TEXT
--format {auto,messages,sharegpt,prompt-completion,question-answer,instruction,text}
--columns A,B,...
--loss-on {all,last}
--max-length N
--overlong {drop,truncate}
--validation-size N
--test-size N
--limit N
--data-seed N
"""

REINFORCEMENT = """
--reward A,B,...
--reward-timeout X
--template TEXT
--group N
--max-new-tokens N
--temperature X
--top-p X
--top-k N
--stop TEXT
--rows N
--sampler {own,vllm}
--dynamic N
--eval-samples N
--judge-by {greedy,sampled}
--updates-per-batch N
--ratio {token,sequence}
--clip-low X
--clip-high X
--truncate X
--kl X
--divide-by-std
--normaliser {completions,tokens}
"""

TRAINING = """
--rank A,B,...
--lr A,B,...
--alpha X
--targets A,B,...
--unembed
--full
--full-lr A,B,...
--support {all,matched}
--seed N
--steps N
--epochs X
--batch-size N
--schedule {constant,linear,cosine}
--warmup N
--eval-every N
--checkpoint-every N
--also-eval A,B,...
--device TEXT
--dtype {bf16,fp32}
--threads N
--tokens-per-microbatch N
--memory TEXT
--activation-checkpointing
"""

OPTIONS = {
    "sft": """
--out FOLDER
--resume FOLDER
--track {trackio,tensorboard,wandb}
--must-improve
--json
--debug
"""
    + DATA.lstrip()
    + TRAINING.lstrip(),
    "rl": """
--out FOLDER
--resume FOLDER
--track {trackio,tensorboard,wandb}
--must-improve
--json
--debug
"""
    + DATA.lstrip()
    + REINFORCEMENT.lstrip()
    + TRAINING.lstrip(),
    "plan": """
--tokens N
--task {sft,rl}
--reward-bins N
--pass-rate X
--measure
--bits-per-parameter X
--tflops X
--emit {trl,peft,axolotl,llamafactory,unsloth,torchtune}
--out PLAN.toml
--json
--debug
"""
    + DATA.lstrip()
    + REINFORCEMENT.lstrip()
    + TRAINING.lstrip(),
    "study": """
--model TEXT
--data TEXT
--rank A,B,...
--batch-size A,B,...
--steps A,B,...
--fidelity-at A,B,...
--epochs X
--loads A,B,...
--alpha A,B,...
--seeds N
--grid {adaptive,paper,fixed}
--lr A,B,...
--full-lr A,B,...
--reward A,B,...
--group N
--max-new-tokens N
--judge-by {greedy,sampled}
--support {all,matched}
--max-length N
--limit N
--validation-size N
--test-size N
--no-curve
--workers N
--threads N
--ray TEXT
--device TEXT
--dtype {bf16,fp32}
--budget X
--out FOLDER
--resume FOLDER
--power
--json
--debug
""",
    "export": """
--out PATH
--slot TEXT
--merge
--dtype {bf16,fp32}
--rounding {stochastic,nearest}
--verify-documents N
--model TEXT
--push TEXT
--json
--debug
""",
    "bases": """
--debug
""",
    "runs": """
--json
--debug
""",
    "diagnose": """
--json
--debug
""",
}


SIGNATURES = {
    "list_runs": "root: str | Path",
    "load_data": "spec: DataSpec, tokenizer: TextTokenizer, *, progress: Progress | None = ...",
    "load_problems": (
        "spec: DataSpec, rl: RLSpec, tokenizer: TextTokenizer, *, usable: Callable[[Problem], bool] = ..."
    ),
    "locate_model": "spec: ModelSpec, *, weights: bool = ..., notify: Callable[[str], None] = ...",
    "read_shape": "folder: Path",
    "recommend": (
        "*, model: str | Path, tokens: int, num_examples: int | None = ..., longest: int | None = ..., "
        "shape: ModelShape | None = ..., task: str = ..., rank: int | None = ..., batch_size: int = ..., "
        "steps: int | None = ..., schedule: ScheduleSpec = ..., hardware: DeviceFacts = ..."
    ),
    "resolve": (
        "spec: RunSpec, *, shape: ModelShape, facts: DataFacts, hardware: DeviceFacts, "
        "information: Information | None = ..., must_fit: bool = ..."
    ),
    "train": (
        "run: RunDirectory, *, model: ModelFolder, data: TokenizedData, listener: ProgressListener, "
        "also_eval: Mapping[str, ExampleStore] = ..., keep_last: bool = ..."
    ),
    "train_rl": (
        "run: RunDirectory, *, model: ModelFolder, data: ProblemData, scorer: Scores, listener: ProgressListener, "
        "keep_last: bool = ..."
    ),
    "validate_capacity": (
        "*, rank: int, dataset_tokens: int, hidden_dim: int | None = ..., num_layers: int | None = ..., "
        "shape: ModelShape | None = ..., targets: tuple[str, ...] = ..., unembed: bool = ..., "
        "bits_per_token: float = ..., bits_per_parameter: float = ..."
    ),
}
"""Public functions; `...` stands for a default."""

METHODS = {
    "RunDirectory": """
acquire
adapter_folder slot
append_accuracy rows
append_dynamics rows
append_evals rows
append_fidelity rows
append_metrics rows
append_policy rows
append_rollouts rows
append_samples rows
close
create path spec plan environment
drop_checkpoints
latest_checkpoint on_skip
mark_finished summary
open path
read_accuracy
read_dynamics
read_evals
read_fidelity
read_metrics
read_policy
read_rollouts
read_samples
truncate_logs step
write_data_report report
writing_checkpoint step keep
""",
}
"""Public methods of the public classes that are no specs."""

FIELDS = {
    "AdapterSpec": "rank alpha targets unembed init_seed init_scale arithmetic",
    "DataSpec": (
        "source config split test_split test_source format columns loss_on max_length overlong "
        "validation_size test_size limit seed"
    ),
    "FullSpec": "support targets unembed rounding rounding_seed start",
    "HardwareSpec": "device dtype threads tokens_per_microbatch activation_checkpointing memory_bytes",
    "ModelSpec": "source revision",
    "OptimSpec": "lr lr_b betas eps eps_b weight_decay weight_decay_b clip_norm",
    "PolicyGradientSpec": "ratio clip_low clip_high truncate divide_by_std kl normaliser",
    "RewardSpec": "source weight timeout",
    "RLSpec": ("rewards group sampling objective updates_per_batch dynamic eval_samples judge_by template"),
    "RunSpec": "task model data slots train rl hardware tracking",
    "SamplingSpec": "temperature top_p top_k max_new_tokens stop rows engine",
    "ScheduleSpec": "kind warmup final",
    "SlotSpec": "name weights optim data_seed",
    "TrainSpec": (
        "steps epochs batch_size eval_every eval_early checkpoint_every schedule drop_dominated dynamics fidelity_at "
        "also_eval num_samples"
    ),
}
"""Fields of the specs: also the keys of a spec file."""


def options_of(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", "110")  # no option folded, and not yet two columns of boxes
    with pytest.raises(SystemExit) as left:
        run([command, "--help"])
    assert left.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    # An option starts its line of the box, whose frame is blank where the terminal has no such characters; its
    # description stands two blanks behind it, or on the next line.
    return [re.split(r" {2,}| ?│?$", line[2:])[0] for line in lines if re.match("[│ ] --[a-z]", line)]


@pytest.mark.parametrize("command", OPTIONS)
def test_options(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    assert options_of(command, capsys, monkeypatch) == OPTIONS[command].strip().splitlines()


def test_commands(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        run(["--help"])
    assert re.findall(r"(?:•|-) (\w+) {2,}", capsys.readouterr().out) == list(OPTIONS)


def test_public_names_are_those_listed():
    assert set(lowregret.__all__) == {*SIGNATURES, *METHODS, *FIELDS, "LowregretError"}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str):
    parameters = inspect.signature(getattr(lowregret, name)).parameters.values()
    rendered = [str(p.replace(default=p.empty)) + (" = ..." if p.default is not p.empty else "") for p in parameters]
    keyword_only = next((i for i, p in enumerate(parameters) if p.kind is p.KEYWORD_ONLY), None)
    if keyword_only is not None:
        rendered.insert(keyword_only, "*")
    assert ", ".join(rendered).replace("'", "") == SIGNATURES[name]


@pytest.mark.parametrize("name", METHODS)
def test_methods(name: str):
    found: list[str] = []
    for method, function in inspect.getmembers(getattr(lowregret, name), callable):
        if not method.startswith("_"):
            parameters = [parameter for parameter in inspect.signature(function).parameters if parameter != "self"]
            found.append(" ".join([method, *parameters]))
    assert found == METHODS[name].strip().splitlines()


@pytest.mark.parametrize("name", FIELDS)
def test_fields(name: str):
    assert " ".join(field.name for field in dataclasses.fields(getattr(lowregret, name))) == FIELDS[name]
