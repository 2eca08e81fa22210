"""What a hub refuses is said as it is: by what its libraries raise here, and by a server of the test's own through the
libraries themselves, which replace each other's errors."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError
from huggingface_hub.errors import HFValidationError

from lowregret.data.sources import open_source
from lowregret.errors import DataError, ModelError
from lowregret.hub import hub_trouble
from lowregret.models.locate import locate_model
from lowregret.specs import DataSpec, ModelSpec

SCRIPT = """
import http.server, json, os, sys, threading

ERRORS = {"gated": (403, "GatedRepo"), "none": (404, "RepoNotFound"), "revision": (404, "RevisionNotFound")}

class Hub(http.server.BaseHTTPRequestHandler):
    def answer(self):
        status, code = next(error for name, error in ERRORS.items() if f"owner/{name}" in self.path)
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_GET = do_HEAD = answer
    def log_message(self, *_):
        pass

hub = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=hub.serve_forever, daemon=True).start()
os.environ.update(
    HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}", HF_HOME=sys.argv[1], HF_HUB_OFFLINE="0", NO_PROXY="127.0.0.1"
)
from lowregret.data.sources import open_source
from lowregret.errors import DataError, ModelError
from lowregret.models.locate import locate_model
from lowregret.specs import DataSpec, ModelSpec

said = {}
for name in ERRORS:
    try:
        open_source(DataSpec(source=f"owner/{name}"))
    except DataError as error:
        said[f"data {name}"] = str(error)
    try:
        locate_model(ModelSpec(source=f"owner/{name}", revision="v2"))
    except ModelError as error:
        said[f"model {name}"] = str(error)
print(json.dumps(said))
"""


def test_what_a_hub_answers_is_said_as_it_is(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    no_revision = "the hub has no such branch, tag or commit; check the revision"
    assert json.loads(done.stdout) == {
        "data gated": "data set owner/gated is gated; accept its terms on the hub and run `hf auth login`",
        "model gated": "model owner/gated at 'v2' is gated; accept its terms on the hub and run `hf auth login`",
        "data none": "the hub has no data set owner/none; check the id, log in if it is private, or give a local file",
        "model none": "the hub has no model owner/none at 'v2'; check the id, log in if it is private, "
        "or give a local folder",
        "data revision": f"data set owner/revision: {no_revision}",
        "model revision": f"model owner/revision at 'v2': {no_revision}",
    }


def generation_that_failed_by(cause: Exception) -> Exception:
    """As `datasets` raises it when a file of a set can't be converted."""
    error = DatasetGenerationError("An error occurred while generating the dataset")
    error.__cause__ = cause
    return error


SAID = [
    (OSError(errno.ENOSPC, "full"), "x: no space left to store it; free some disk, or set HF_HOME"),
    (generation_that_failed_by(OSError(errno.EDQUOT, "full")), "x: no space left to store it"),
    (PermissionError(errno.EACCES, "no"), "x can't be stored in the hub's cache .*no.*; check its permissions"),
    (generation_that_failed_by(KeyError("column a")), "x can't be fetched or read .*column a.*; mend it, or give y"),
    (DataFilesNotFoundError("none"), "x has no data files that can be read; convert it, or give y"),
    (HFValidationError("Cannot have --"), r"x: this is no id of the hub \(Cannot have --\); write it as owner/name"),
    (ConnectionError("down"), "x is not in the local cache and the hub can't be reached; give y, or try again later"),
    (OSError(errno.EIO, "broken"), "x can't be fetched or read .*broken"),
]


@pytest.mark.parametrize(("raised", "said"), SAID)
def test_each_trouble_has_a_line_of_its_own(raised: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(DataError, match=said.replace("x", "data set a/b", 1).replace("give y", "give a local file")):
        open_source(DataSpec(source="a/b"))
    with pytest.raises(ModelError, match=said.replace("x", "model a/b", 1).replace("give y", "give a local folder")):
        locate_model(ModelSpec(source="a/b"))


def test_what_is_no_trouble_of_the_hub_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("a mistake of ours")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(KeyError, match="a mistake of ours"):
        open_source(DataSpec(source="a/b"))
    assert hub_trouble(KeyError("x"), what="data set a/b", instead="a file") is None


def test_an_id_that_can_be_none_is_not_taken_for_a_hub_that_cant_be_reached() -> None:
    with pytest.raises(ModelError, match=r"model a--b/c: this is no id of the hub .*; write it as owner/name"):
        locate_model(ModelSpec(source="a--b/c"))
