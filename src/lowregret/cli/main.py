"""`lowregret`: parse, call one command, turn an error into one line. Each command is imported when it is called."""

from __future__ import annotations

import errno
import os
import select
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, cast

import tyro
from tyro.conf import subcommand

from lowregret.cli.flags import Bases, Command, Diagnose, Export, Plan, Rl, Runs, Sft
from lowregret.cli.study_flags import Study
from lowregret.errors import LowregretError

DESCRIPTION = """\
lowregret answers one question with evidence: will LoRA match full fine-tuning on this model and this data, and with
which settings? `plan` computes what a run would do, without loading weights. `sft` trains adapters of many ranks and
learning rates in one pass over one frozen base, measures the loss on held-out data as it goes, and leaves a run
directory with the adapters, their curves and a report. `rl` does the same by policy gradient on rewards that a program
computes, and measures accuracy. `study` runs an experiment of the paper on your model and data
and gives a verdict with its interval. `diagnose` finds what went wrong in a run or a study. `export` writes an adapter
for PEFT, or merges it.

Start here:

lowregret plan --model smollm2-135m --data reasoning-gym:chain_sum --rank 1,8,64

lowregret sft --model smollm2-135m --data reasoning-gym:chain_sum --rank 1,8,64 --steps 100

lowregret runs
"""

READER_LEFT = 141
"""Exit code of a program that a closed pipe ends, as shells have it."""

_COMMANDS = (
    Annotated[Sft, subcommand("sft")]
    | Annotated[Rl, subcommand("rl")]
    | Annotated[Plan, subcommand("plan")]
    | Annotated[Study, subcommand("study")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Bases, subcommand("bases")]
    | Annotated[Runs, subcommand("runs")]
    | Annotated[Diagnose, subcommand("diagnose")]
)


def parse(arguments: Sequence[str]) -> Command | Study:
    """The command that the arguments spell; exits with code 2 and a hint where they spell none."""
    command = tyro.cli(
        _COMMANDS,  # pyright: ignore[reportArgumentType, reportCallIssue]
        prog="lowregret",
        description=DESCRIPTION,
        args=list(arguments),
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
    )
    return cast("Command | Study", command)


def run(arguments: Sequence[str]) -> int:
    """Exit code of the command: 0 done, 1 the result fell short, 2 an error the user can mend, 130 interrupted."""
    command = parse(arguments)
    try:
        return _dispatch(command)
    except LowregretError as error:
        if command.debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if _reader_left():
            raise
        # The rooms name what they were doing; what is left is a disk or a permission that failed elsewhere.
        if command.debug:
            traceback.print_exc()
        print(f"error: {_disk_error(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is written stays, and a run goes on with --resume", file=sys.stderr)
        return 130


def _disk_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    remedy = {errno.ENOSPC: "free some disk", errno.EDQUOT: "free some disk", errno.EACCES: "check the permissions"}
    hint = remedy.get(error.errno or 0, "check the path; --debug shows where")
    return f"{where}{error.strerror or error}; {hint}"


def _reader_left() -> bool:
    """Whether standard output is a pipe that nobody reads any more, as far as this system can tell."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
    except (AttributeError, OSError):  # no poll on Windows, no file behind it in a notebook
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def main() -> None:
    """Entry point of the console script. A reader that has seen enough (`| head`) is no error of ours."""
    code: str | int | None
    try:
        code = run(sys.argv[1:])
    except SystemExit as end:  # of the parser
        code = end.code
    except BrokenPipeError:
        if not _reader_left():
            raise
        code = READER_LEFT
    if _reader_left():
        code = READER_LEFT
        # Python would flush once more at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _dispatch(command: Command | Study) -> int:
    match command:
        case Sft():
            from lowregret.cli.sft import sft

            return sft(command)
        case Rl():
            from lowregret.cli.rl import rl

            return rl(command)
        case Plan():
            from lowregret.cli.plan import plan

            return plan(command)
        case Study():
            from lowregret.cli.study import study

            return study(command)
        case Export():
            from lowregret.cli.export import export

            return export(command)
        case Bases():
            from lowregret.cli.bases import bases

            return bases(command)
        case Runs():
            from lowregret.cli.runs import runs

            return runs(command)
        case Diagnose():
            from lowregret.cli.diagnose import diagnose

            return diagnose(command)
