"""What goes wrong between here and the hub, as one line that says what to do; shared by data sets and models.

The hub's libraries wrap and replace each other's errors (a gated data set arrives as one that does not exist, a full
disk as a build that failed), so all errors that led to one are looked at. They are known by the names of their classes:
to import `datasets` for its errors would load it where a model is fetched.
"""

from __future__ import annotations

import errno

GATED = "{what} is gated; accept its terms on the hub and run `hf auth login`"
BY_CLASS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("GatedRepoError",), GATED),
    (("RevisionNotFoundError",), "{what}: the hub has no such branch, tag or commit; check the revision"),
    (
        ("DataFilesNotFoundError", "EmptyDatasetError"),
        "{what} has no data files that can be read; convert it, or give {instead}",
    ),
    (("HFValidationError",), "{what}: this is no id of the hub ({why}); write it as owner/name"),
    (
        ("RepositoryNotFoundError", "DatasetNotFoundError"),
        "the hub has no {what}; check the id, log in if it is private, or give {instead}",
    ),
    (("HfHubHTTPError",), "the hub does not hand out {what} ({why}); try again later, or give {instead}"),
    (
        ("OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError", "TimeoutError", "TransportError"),
        "{what} is not in the local cache and the hub can't be reached; give {instead}, or try again later",
    ),
)
"""Names of error classes, the most telling first, and what to say of them."""

NO_SPACE = "{what}: no space left to store it; free some disk, or set HF_HOME to a folder on another"
NO_RIGHT = (
    "{what} can't be stored in the hub's cache ({why}); check its permissions, or set HF_HOME to a folder of yours"
)
UNREADABLE = "{what} can't be fetched or read ({why}); mend it, or give {instead}"
FULL, REFUSED = (errno.ENOSPC, errno.EDQUOT), (errno.EACCES, errno.EPERM, errno.EROFS)
LIBRARIES = ("huggingface_hub", "datasets")


def hub_trouble(error: Exception, *, what: str, instead: str) -> str | None:
    """One line for an error of the hub's libraries, or of the disk that they write to; None for any other error.

    Args:
        what: what was asked for, as in `data set owner/name`.
        instead: what may be given in its place, as in `a local file`.

    >>> hub_trouble(OSError(errno.ENOSPC, "No space"), what="model a/b", instead="a local folder")
    'model a/b: no space left to store it; free some disk, or set HF_HOME to a folder on another'
    >>> hub_trouble(KeyError("x"), what="model a/b", instead="a local folder") is None
    True
    """
    found = _find(error, _that_led_to(error))
    if found is None:
        return None
    template, cause = found
    return template.format(what=what, instead=instead, why=_first_line(cause))


def _find(error: Exception, chain: list[BaseException]) -> tuple[str, BaseException] | None:
    """What to say, and the error that gives the reason."""
    for one in chain:
        if isinstance(one, OSError) and one.errno in (*FULL, *REFUSED):
            return (NO_SPACE if one.errno in FULL else NO_RIGHT), one
        # `datasets` drops the hub's own error where it looks into its cache once more; only the text is left of it.
        if "is a gated dataset" in str(one):
            return GATED, one
    for names, template in BY_CLASS:
        for one in chain:
            if any(kind.__name__ in names for kind in type(one).__mro__):
                return template, one
    if isinstance(error, OSError) or type(error).__module__.split(".")[0] in LIBRARIES:
        return UNREADABLE, chain[-1]
    return None


def _that_led_to(error: BaseException) -> list[BaseException]:
    """The error, and what it was raised from or while handling, back to the first."""
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__ or one.__context__
    return chain


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
