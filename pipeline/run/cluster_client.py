"""A connection to a Dask cluster: errors that name the worker, results as they arrive, tasks of lost workers."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from costl.pipeline.errors import CostlError, UsageError

_CONNECT_S = 10.0
_ANSWER_S = 600.0  # long enough to load CLIP from a slow disk
_NO_WORKER_S = 60.0
_COUNT_WORKERS_S = 0.2


@contextmanager
def connect(address: str) -> Iterator[Any]:
    """A client of the scheduler at `address`.

    Raises UsageError if the package `distributed` is missing or no scheduler answers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError(f"--cluster needs the package distributed ({error}): pip install 'costl[cluster]'") from error
    try:
        client = Client(address, timeout=_CONNECT_S, set_as_default=False)
    except Exception as error:  # of the address, of the network or of Dask, which raises all kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"{address}: no Dask scheduler answers there ({reason[:200]}). "
            "Expected an address such as tcp://scheduler:8786; `dask scheduler` prints it."
        ) from error
    with client:
        yield client


def worker_threads(client: Any) -> dict[str, int]:
    """The number of threads of each worker. Raises UsageError if there are no workers."""
    threads: dict[str, int] = client.nthreads()
    if not threads:
        address = client.scheduler.address
        raise UsageError(
            f"{address}: the scheduler has no workers. Start some: DASK_DISTRIBUTED__WORKER__DAEMON=False dask worker "
            f"{address}"
        )
    return threads


def run_on_all(client: Any, function: Callable[..., Any], *arguments: Any) -> Iterator[tuple[str, Any]]:
    """(worker, result) of `function(*arguments)` on every worker, all at once.

    Raises UsageError with the name of a worker on which it fails, and if there are no workers.
    """
    names = sorted(worker_threads(client))
    futures = [client.submit(function, *arguments, workers=[name], pure=False) for name in names]
    for name, future in zip(names, futures, strict=True):
        try:
            result = future.result(timeout=_ANSWER_S)
        except CostlError as error:
            raise UsageError(f"worker {name}: {error}") from error
        except Exception as error:  # whatever its Python could not import, or the scheduler could not read
            cause = error.__cause__ or error
            raise UsageError(
                f"worker {name} cannot run CoSTL ({type(cause).__name__}: {str(cause)[:200]}). "
                "Install the same version on every worker and where the scheduler runs."
            ) from error
        yield name, result


def results(client: Any, tasks: Sequence[Any], *, poll_s: float, remedy: str) -> Iterator[Any]:
    """The results of tasks in the order they arrive, with a look for new ones every `poll_s` seconds.

    Raises CostlError that ends with `remedy` if the scheduler, all workers, or several workers with one task are lost.
    """
    from distributed import KilledWorker, as_completed
    from distributed.comm import CommClosedError

    arrived = as_completed(tasks, loop=client.loop)
    del tasks  # so that a worker can forget a result that has arrived
    refuse_no_workers = _WorkerWatch(client, remedy)
    try:
        while not arrived.is_empty():
            for task in arrived.next_batch(block=False):
                yield task.result()
            time.sleep(poll_s)
            refuse_no_workers()
    except CostlError:
        raise
    except KilledWorker as error:
        raise CostlError(f"Several workers died while they had one task (out of memory?). {remedy}") from error
    except Exception as error:
        if client.status == "running" and not isinstance(error, CommClosedError):
            raise
        raise CostlError(f"{client.scheduler.address}: the scheduler is gone. {remedy}") from error


class _WorkerWatch:
    """Raises CostlError once there has been no worker for a minute. Dask itself waits forever for another worker."""

    def __init__(self, client: Any, remedy: str):
        self._client = client
        self._remedy = remedy
        self._counted_s = self._last_worker_s = time.monotonic()

    def __call__(self) -> None:
        now_s = time.monotonic()
        if now_s - self._counted_s < _COUNT_WORKERS_S:
            return
        self._counted_s = now_s
        if self._client.nthreads():
            self._last_worker_s = now_s
        elif now_s - self._last_worker_s > _NO_WORKER_S:
            raise CostlError(f"No worker has been left for {_NO_WORKER_S:.0f} s. {self._remedy}")


@contextmanager
def retrying_lost_tasks(client: Any, function: Callable[..., Any]) -> Iterator[None]:
    """Keeps the scheduler from giving up on tasks of `function` whose workers died.

    It would give up after a few lost workers, also on a task that was only queued there. The marks of `cluster_worker`
    show more reliably which video kills its workers.
    """
    from distributed import SchedulerPlugin

    name_in_keys = function.__name__

    class ClearSuspicion(SchedulerPlugin):
        def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
            for key, task in scheduler.tasks.items():
                if name_in_keys in str(key):
                    task.suspicious = 0

    name = f"costl-{secrets.token_hex(4)}"
    client.register_plugin(ClearSuspicion(), name=name)
    try:
        yield
    finally:
        with suppress(OSError, ValueError, RuntimeError):  # the scheduler may be gone
            if client.status == "running":
                client.unregister_scheduler_plugin(name)
