"""Typed errors of the package.

Every message is one line that says what is wrong, where (the field or the file), and what to do about it.
The command line prints that line and exits with code 2; ``--debug`` shows the traceback.
"""

from __future__ import annotations


class LowregretError(Exception):
    """Base of every error that a user can cause and mend."""


class SpecError(LowregretError):
    """A specification is wrong: an unknown field, a value out of range, a target that matches nothing."""


class DataError(LowregretError):
    """A data set can't be found, read or used."""


class ModelError(LowregretError):
    """A model or tokenizer can't be found, loaded or adapted."""


class CapacityError(LowregretError):
    """What was asked for does not fit: memory, disk, or a rank beyond the matrix."""


class CheckpointError(LowregretError):
    """A checkpoint or run directory is missing, torn, corrupt, or belongs to another specification."""


class ExportError(LowregretError):
    """An adapter or merged model can't be written, or what was written does not read back equal."""
