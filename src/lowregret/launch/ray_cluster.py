"""Where banks train: on a Ray cluster. The only module that imports Ray, and only once a cluster is asked for.

Each bank is one task, and only names travel: a worker finds the bank's run directory, its base and its data by their
paths. So the study (and whatever it names by a path) must lie on a file system that every node sees, under the same
path; lowregret must be installed on every node; and the caches of models should be shared too (`LOWREGRET_CACHE`,
`HF_HOME`), or each node fetches its own.

Guarantees: a worker that is lost is counted, told, and its bank goes on from its last checkpoint; an error of a bank
arrives as the bank raised it; who stops the study stops every bank under way at its next step, with a checkpoint.
"""

from __future__ import annotations

import os
import platform
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lowregret.errors import CheckpointError, LowregretError, SpecError
from lowregret.launch.banks import run_bank
from lowregret.launch.executors import MOST_RETRIES
from lowregret.store import RunDirectory

CONNECT_SECONDS = 5.0
"""To reach an address: Ray itself would try for two minutes, and print meanwhile."""

LOCK_SECONDS = 120.0
"""For the lock of a lost worker: the system frees it when a process ends, but a file server learns of a dead node when
its lease runs out (90 s for NFS 4)."""

STORE_BYTES = 80 << 20
"""Of the object store of a cluster that is started here, close to Ray's least: no tensor travels."""

CLIENT, CLIENT_PORT = "ray://", 10001


class RayCluster:
    """Banks side by side on a Ray cluster. A context manager: connected, or started here, while it is entered.

    Args:
        address: `auto` (the cluster that this machine is part of, or `RAY_ADDRESS`), `local` (one is started here and
            ends with the study), `HOST:PORT`, or `ray://HOST:PORT` for a machine outside the cluster.
        number: banks at once.
        threads: CPUs that a bank takes.
        cuda: whether a bank takes a GPU.
        notify: told of lost workers, in one line each.

    Raises:
        SpecError: the address is none.
    """

    def __init__(self, address: str, *, number: int, threads: int, cuda: bool, notify: Callable[[str], None]) -> None:
        _check_address(address)
        self._address, self._number, self._notify = address, number, notify
        self._resources = {"num_cpus": threads, "num_gpus": int(cuda)}

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            LowregretError: Ray is not installed, or no cluster that fits answers at the address.
        """
        ray = _import_ray()
        _reach(self._address)
        # Nothing that a study does is reported to anybody.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        # No public switch keeps the cluster's remarks off stdout, which holds the result; lost workers are told by us.
        ray._private.worker._worker_logs_enabled = False
        options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if self._address == "local":
            # Ray's own is 15: beside any other work the banks would get next to none of the processor.
            os.environ.setdefault("RAY_worker_niceness", "0")
            cpus = max(os.cpu_count() or 1, self._number * self._resources["num_cpus"])
            options |= {"include_dashboard": False, "num_cpus": cpus, "object_store_memory": STORE_BYTES}
        try:
            with _own_sigterm():
                ray.init(self._address, **options)
        except SystemExit as stop:  # Ray's answer to SIGTERM
            raise KeyboardInterrupt from stop
        except (OSError, RuntimeError, ValueError, ImportError, ray.exceptions.RayError) as error:
            raise LowregretError(
                f"--ray {self._address}: no cluster to train on: {_first_line(error)}; check that it runs, with "
                "this version of Ray and Python, and where it asks for a token, set RAY_AUTH_MODE=token here"
            ) from error
        self._tell_what_is_missing(ray)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect; a cluster that was started here ends."""
        _import_ray().shutdown()

    def run(self, folders: Mapping[str, str], done: Callable[[str], None]) -> None:
        """Train the banks; one whose worker is lost goes on from its last checkpoint on another.

        Raises:
            LowregretError: a bank's own error, or its workers were lost again and again.
        """
        ray = _import_ray()
        # Retries are ours, so that they are counted and told.
        task = ray.remote(max_retries=0, **self._resources)(train_bank)
        place = str(Path.cwd())
        waiting, lost = deque(folders), Counter[str]()
        under_way: dict[Any, str] = {}
        try:
            while waiting or under_way:
                while waiting and len(under_way) < self._number:
                    name = waiting.popleft()
                    under_way[task.remote(str(Path(folders[name]).resolve()), place)] = name
                for ended in ray.wait(list(under_way))[0]:
                    name = under_way.pop(ended)
                    why = self._loss(ray, ended)
                    if why is None:
                        done(name)
                        continue
                    lost[name] += 1
                    self._tell_loss(name, why, lost[name])
                    waiting.appendleft(name)
        except BaseException:
            _stop(ray, list(under_way))
            raise

    def _loss(self, ray: Any, ended: Any) -> str | None:
        """None where the bank is finished; else why its worker was lost.

        Raises:
            LowregretError: the bank's own, or Ray can't run it.
        """
        try:
            return None if ray.get(ended) else "was told to stop"
        except ray.exceptions.WorkerCrashedError:
            return "died"
        except ray.exceptions.NodeDiedError:
            return "was lost with its node"
        except ray.exceptions.OutOfMemoryError:
            return "was ended because its node ran out of memory"
        except ray.exceptions.RayTaskError as error:
            # Where the task's module can't be imported, Ray puts a function in its place that says so.
            if isinstance(error.cause, RuntimeError) and "failed to import on the worker" in str(error.cause):
                raise LowregretError(
                    f"--ray {self._address}: a worker can't import lowregret; install it on every node, in the "
                    "environment that Ray runs in"
                ) from error
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise LowregretError(
                f"--ray {self._address}: {_first_line(error)}; look after the cluster and resume"
            ) from error

    def _tell_loss(self, name: str, why: str, times: int) -> None:
        if times > MOST_RETRIES:
            raise LowregretError(
                f"bank {name}: its worker {why}, and {times - 1} before it were lost too; is memory short? Lower the "
                "study's workers and resume"
            )
        self._notify(f"bank {name}: its worker {why}; it goes on from its last checkpoint")

    def _tell_what_is_missing(self, ray: Any) -> None:
        """Ray lets a task wait for ever where no node offers what it takes; one that grows may offer it later."""
        cpus, gpus = self._resources["num_cpus"], self._resources["num_gpus"]
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            what = f"{cpus} CPUs" + (" and a GPU" if gpus else "")
            self._notify(f"no node of the cluster offers {what} to a bank; they wait for one that does")


def train_bank(folder: str, place: str) -> bool:
    """What a worker does: train the bank in this folder to its end; False where the worker was told to stop before.

    Args:
        folder: the bank's run directory, as seen from the study.
        place: the folder that the study runs in, which relative paths of its models and data start from.

    Raises:
        CheckpointError: this node does not see the folder.
        LowregretError: as `run_bank`.
    """
    # Ray cancels a task by an interrupt, which a worker ignores whose cluster was started in a shell's background.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    from lowregret.training.sft import Interrupted

    if not (Path(folder) / "spec.toml").is_file():
        raise CheckpointError(
            f"{folder}: is not seen by the Ray worker on {platform.node()}; keep the study on a file system that every "
            "node has at the same path (--out)"
        )
    # A study that names its model and data by absolute paths may run in a folder that is its machine's own.
    if Path(place).is_dir():
        os.chdir(place)
    deadline = time.monotonic() + LOCK_SECONDS
    while RunDirectory.open(folder).running and time.monotonic() < deadline:
        time.sleep(0.1)
    try:
        run_bank(Path(folder))
    except Interrupted:
        return False
    return True


def _stop(ray: Any, under_way: list[Any]) -> None:
    """Interrupt the tasks and wait for their ends: a bank finishes its step and writes a checkpoint."""
    for task in under_way:
        ray.cancel(task)
    if under_way:
        ray.wait(under_way, num_returns=len(under_way))


def _check_address(address: str) -> None:
    if address in ("auto", "local") or "://" in address:
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise SpecError(f"--ray: {address!r} is no address; give auto, local, HOST:PORT or ray://HOST:PORT")


def _reach(address: str) -> None:
    """Open and close a connection, where the address says to what.

    Raises:
        LowregretError: nothing listens there.
    """
    if address in ("auto", "local") or ("://" in address and not address.startswith(CLIENT)):
        return
    host, _, port = address.removeprefix(CLIENT).partition(":")
    try:
        socket.create_connection((host, int(port or CLIENT_PORT)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise LowregretError(
            f"--ray {address}: can't be reached: {error}; check the address, and that a cluster runs there"
        ) from error


def _import_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise LowregretError("--ray: Ray is not installed; pip install 'lowregret[ray]'") from error
    return ray


@contextmanager
def _own_sigterm() -> Generator[None, None, None]:
    """Keep this process's answer to SIGTERM, which Ray replaces when it connects in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
