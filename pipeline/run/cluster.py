"""Extraction on an existing Dask cluster through joblib: each video is a task, and the client holds the cache's lock."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
from joblib.parallel import get_active_backend

from costl.pipeline.cache.index import VideoRow
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.errors import CacheError, CostlError, UsageError
from costl.pipeline.fingerprint import explain_difference
from costl.pipeline.options import FAILURES_IN_A_ROW
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.run.cluster_worker import (
    RunSpec,
    VideoResult,
    WorkerInfo,
    extract_one,
    inspect_worker,
    prepare_worker,
    versions,
)
from costl.pipeline.videos import Video

_CONNECT_S = 10.0
_ANSWER_S = 600.0  # long enough to load CLIP from a slow disk
_NO_WORKER_S = 60.0
_VISIBLE_S = 60.0  # network file systems show a new file late
_SAMPLE = 50
_DAEMON = "DASK_DISTRIBUTED__WORKER__DAEMON=False"


def agree_on_precision(address: str, *, device: str, precision: str | None, workers: int | None = None) -> str:
    """The precision in which all workers of the scheduler at `address` compute: `precision`, or what their devices prefer.

    Raises UsageError if the package `distributed` is missing, no scheduler answers, or it has no workers; and with the
    worker's name, if a worker may not start processes, has other versions than this machine, or another type of device.
    """
    if workers is not None:
        raise UsageError(
            "--workers is for one machine: on a cluster each thread of a worker decodes a video (--nthreads)."
        )
    with _connect(address) as cluster:
        return cluster.precision(device, precision)


def extract_on_cluster(
    address: str,
    writer: CacheWriter,
    videos: Sequence[Video],
    *,
    spec: RunSpec,
    failed_before: Set[str] = frozenset(),
    report_progress: ProgressCallback,
) -> list[VideoRow]:
    """As `engine.extract_into`, but each video is a task for the next free worker of the scheduler at `address`.

    The workers write the parts, into the writer's folder as they see it, and return rows. Other workers repeat the videos
    of a lost worker. Raises UsageError naming a worker that does not see the folder or the videos or has another CLIP, and
    CostlError if the scheduler or all workers are lost.
    """
    if not videos:
        return []
    # Not Path.resolve, which raises for a link that leads to itself.
    videos = [Video(video.id, Path(os.path.realpath(video.path))) for video in videos]
    with _run_folder(writer.parts) as folder, _connect(address) as cluster:
        spec = replace(spec, out=writer.path.resolve(), folder=folder)
        return cluster.extract(writer, videos, spec, failed_before, report_progress)


@contextmanager
def _run_folder(parts: Path) -> Iterator[Path]:
    """A folder for this run's marks; the workers stop when it is gone. Removes the folders of killed runs."""
    for old in parts.glob(".run-*"):
        shutil.rmtree(old, ignore_errors=True)
    folder = parts.resolve() / f".run-{secrets.token_hex(8)}"
    try:
        folder.mkdir()
    except OSError as error:
        raise CacheError(f"{folder}: cannot be made ({error.strerror}). Choose another --out.") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for stray in parts.glob(".*.tmp"):  # of lost workers
            stray.unlink(missing_ok=True)


@contextmanager
def _connect(address: str) -> Iterator[_Cluster]:
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError(f"--cluster needs the package distributed ({error}): pip install 'costl[cluster]'") from error
    try:
        client = Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"{address}: no Dask scheduler answers there ({reason[:200]}). "
            "Expected an address such as tcp://scheduler:8786; `dask scheduler` prints it."
        ) from error
    with client:
        yield _Cluster(client, address)


class _Cluster:
    """The workers of one scheduler."""

    def __init__(self, client: Any, address: str):
        self._client = client
        self._address = address

    def precision(self, device: str, precision: str | None) -> str:
        workers: dict[str, WorkerInfo] = self._run_on_all(inspect_worker, device)
        here = versions()
        for name, worker in workers.items():
            if not worker.may_start_processes:
                raise UsageError(
                    f"worker {name} may not start processes, which decoding needs. Start it with {_DAEMON} dask worker "
                    f"{self._address}, or with dask worker --no-nanny."
                )
            _refuse_other_versions(name, worker.versions, here)
        by_type = {worker.device_type: name for name, worker in workers.items()}
        if len(by_type) > 1 and not precision:
            devices = ", ".join(f"{name} has {device_type}" for device_type, name in by_type.items())
            raise UsageError(f"The workers have different devices ({devices}). Name one for all by --device.")
        return precision or ("fp16" if "cuda" in by_type else "fp32")

    def extract(
        self,
        writer: CacheWriter,
        videos: Sequence[Video],
        spec: RunSpec,
        failed_before: Set[str],
        report_progress: ProgressCallback,
    ) -> list[VideoRow]:
        self._prepare_workers(spec, videos, report_progress)
        rows: list[VideoRow] = []
        for result in self._results(spec, videos):
            row = _adopt_result(writer, result)
            rows.append(row)
            report_progress(Progress("videos", len(rows), len(videos), row.reason or row.name))
            _stop_after_failures([row for row in rows if row.id not in failed_before])
        return rows

    def _prepare_workers(self, spec: RunSpec, videos: Sequence[Video], report_progress: ProgressCallback) -> None:
        step = -(-len(videos) // _SAMPLE)
        sample = [(video.path, video.path.stat().st_size) for video in videos[::step] if video.path.is_file()]
        marks = {name: f"worker-{number}" for number, name in enumerate(self._workers())}
        report_progress(Progress("workers", 0, len(marks)))
        problems = self._run_on_all(prepare_worker, spec, by_worker=marks, more=(sample,))
        for number, (name, problem) in enumerate(problems.items(), start=1):
            if not problem and not _wait_until_visible(spec.folder / marks[name]):
                problem = (
                    f"writes to another {spec.folder.parent} than this machine sees: --out must be on shared storage"
                )
            if problem:
                raise UsageError(f"worker {name} {problem}.")
            report_progress(Progress("workers", number, len(marks), name))

    def _results(self, spec: RunSpec, videos: Sequence[Video]) -> Iterator[VideoResult]:
        """The results in the order they arrive."""
        with self._retrying_lost_tasks(), self._watching_workers() as watch:
            with joblib.parallel_config("dask", client=self._client):
                _never_run_locally()
                # All at once, and not as many as there are workers now: more workers may join.
                parallel = joblib.Parallel(batch_size=1, return_as="generator_unordered", pre_dispatch="all")
                results = parallel(joblib.delayed(extract_one)(spec, video) for video in videos)
            try:
                yield from results
            except CostlError:
                raise
            except Exception as error:
                if self._client.status == "running":
                    raise
                problem = watch.problem or f"{self._address}: the scheduler is gone."
                raise CostlError(f"{problem} Finished videos are kept. Run the same command to continue.") from error
            finally:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # joblib warns that results are discarded, as intended
                    results.close()

    @contextmanager
    def _retrying_lost_tasks(self) -> Iterator[None]:
        """Keeps the scheduler from giving up on tasks whose workers died.

        It would give up after a few lost workers, also on a task that was only queued there, and joblib would wait forever
        because it is not notified. The marks of `cluster_worker` tell more reliably which video kills its workers.
        """
        from distributed import SchedulerPlugin

        class ClearSuspicion(SchedulerPlugin):
            def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
                for key, task in scheduler.tasks.items():
                    if "extract_one" in str(key):
                        task.suspicious = 0

        name = f"costl-{secrets.token_hex(4)}"
        self._client.register_plugin(ClearSuspicion(), name=name)
        try:
            yield
        finally:
            with suppress(OSError, ValueError, RuntimeError):  # the scheduler may be gone
                if self._client.status == "running":
                    self._client.unregister_scheduler_plugin(name)

    @contextmanager
    def _watching_workers(self) -> Iterator[_WorkerWatch]:
        watch = _WorkerWatch(self._client)
        watch.start()
        try:
            yield watch
        finally:
            watch.over.set()
            watch.join()

    def _run_on_all(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        by_worker: Mapping[str, Any] | None = None,
        more: Sequence = (),
    ) -> dict[str, Any]:
        """The result of `function(*arguments, by_worker[name], *more)` on every worker, all at once."""
        names = list(by_worker or self._workers())
        if not names:
            raise UsageError(
                f"{self._address}: the scheduler has no workers. Start some: {_DAEMON} dask worker {self._address}"
            )
        futures = {}
        for name in names:
            own = [by_worker[name], *more] if by_worker else more
            futures[name] = self._client.submit(function, *arguments, *own, workers=[name], pure=False)
        return {name: self._result(name, future) for name, future in futures.items()}

    def _workers(self) -> list[str]:
        return sorted(self._client.nthreads())

    def _result(self, name: str, future: Any) -> Any:
        try:
            return future.result(timeout=_ANSWER_S)
        except CostlError as error:
            raise UsageError(f"worker {name}: {error}") from error
        except Exception as error:  # whatever its Python could not import, or the scheduler could not read
            cause = error.__cause__ or error
            raise UsageError(
                f"worker {name} cannot run CoSTL ({type(cause).__name__}: {str(cause)[:200]}). "
                "Install the same version on every worker and where the scheduler runs."
            ) from error


class _WorkerWatch(threading.Thread):
    """Closes the client when there has been no worker for a minute, since joblib would wait forever."""

    def __init__(self, client: Any):
        super().__init__(daemon=True, name="costl-watch")
        self.over = threading.Event()
        self.problem = ""
        self._client = client

    def run(self) -> None:
        """Watches until `over` is set."""
        last_worker_s = time.monotonic()
        while not self.over.wait(min(2.0, _NO_WORKER_S / 4)):
            with suppress(OSError, ValueError, RuntimeError):  # if the scheduler is gone, the tasks report it
                if self._client.nthreads():
                    last_worker_s = time.monotonic()
            if time.monotonic() - last_worker_s > _NO_WORKER_S:
                self.problem = f"No worker has been left for {_NO_WORKER_S:.0f} s."
                self._client.close()  # which ends every wait for a result
                return


def _refuse_other_versions(name: str, there: Mapping[str, str], here: Mapping[str, str]) -> None:
    differences = explain_difference(here, there, was="here", now="there")
    if differences:
        raise UsageError(f"worker {name} has other versions ({'; '.join(differences)}). Install the same everywhere.")


def _never_run_locally() -> None:
    """joblib runs the tasks of a cluster of one thread in this process, unless it believes that there are two threads."""
    backend, _ = get_active_backend()
    threads = backend.effective_n_jobs
    backend.effective_n_jobs = lambda n_jobs: max(2, threads(n_jobs))


def _adopt_result(writer: CacheWriter, result: VideoResult) -> VideoRow:
    row = result.row
    if row.ok and not _wait_until_visible(writer.parts / row.part):
        raise CacheError(f"worker {result.worker} wrote {row.part}, but this machine does not see it in {writer.parts}.")
    return writer.adopt_row(row)


def _wait_until_visible(path: Path) -> bool:
    until_s = time.monotonic() + _VISIBLE_S
    while not path.exists() and time.monotonic() < until_s:
        time.sleep(0.2)
    return path.exists()


def _stop_after_failures(rows: Sequence[VideoRow]) -> None:
    last = rows[-FAILURES_IN_A_ROW:]
    if len(last) == FAILURES_IN_A_ROW and not any(row.ok for row in last):
        raise CostlError(
            f"{FAILURES_IN_A_ROW} videos in a row failed, the last one: {last[-1].reason} "
            "The cause looks like the machines or the folder, not the videos. Finished videos are kept."
        )
