"""Videos as tasks on an existing Dask cluster, by joblib's Dask backend; the client alone holds the cache's lock."""

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
from costl.pipeline.progress import Progress, Tell
from costl.pipeline.run import cluster_worker as station
from costl.pipeline.run.cluster_worker import Made, Order, Worker
from costl.pipeline.videos import Video

_CONNECT_S = 10.0
_ANSWER_S = 600.0  # to load CLIP from a slow disk
_NO_WORKER_S = 60.0
_SEEN_S = 60.0  # network file systems show a new file late
_SAMPLE = 50
_DAEMON = "DASK_DISTRIBUTED__WORKER__DAEMON=False"


def agree_on_precision(address: str, *, device: str, precision: str | None, workers: int | None = None) -> str:
    """What the workers of the scheduler at `address` compute in, unless it is given: one for all, since it decides features.

    Raises UsageError when the package is missing, nobody answers, or there are no workers; and naming the worker, for one
    that may not start processes, has other versions than this machine, none of this code, or another kind of device.
    """
    if workers is not None:
        raise UsageError(
            "--workers is for one machine: on a cluster each thread of a worker decodes a video (--nthreads)."
        )
    with _connected(address) as cluster:
        return cluster.precision(device, precision)


def extract_on_cluster(
    address: str,
    writer: CacheWriter,
    videos: Sequence[Video],
    *,
    order: Order,
    forgiven: Set[str] = frozenset(),
    tell: Tell,
) -> list[VideoRow]:
    """As `encoding.extract_into`: every video is a task on whatever worker of the scheduler at `address` is free.

    The workers write the parts, into the writer's folder as they see it, and send rows. A lost worker costs the videos
    that it had in hand, which others do again. Raises UsageError naming a worker that does not see the folder or the
    videos or has another CLIP, CostlError when the scheduler or all workers are lost.
    """
    if not videos:
        return []
    # Not Path.resolve, which raises for a link that leads round in a circle.
    videos = [Video(video.id, Path(os.path.realpath(video.path))) for video in videos]
    with _run_folder(writer.parts) as folder, _connected(address) as cluster:
        order = replace(order, out=writer.path.resolve(), folder=folder)
        return cluster.extract(writer, videos, order, forgiven, tell)


@contextmanager
def _connected(address: str) -> Iterator[_Cluster]:
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
        self._client, self._address = client, address

    def precision(self, device: str, given: str | None) -> str:
        workers: dict[str, Worker] = self._ask_all(station.look, device)
        here = station.versions()
        for name, worker in workers.items():
            if not worker.may_start_processes:
                raise UsageError(
                    f"worker {name} may not start processes, which decoding needs. Start it with {_DAEMON} dask worker "
                    f"{self._address}, or with dask worker --no-nanny."
                )
            _refuse_versions(name, worker.versions, here)
        kinds = {worker.device: name for name, worker in workers.items()}
        if len(kinds) > 1 and not given:
            told = ", ".join(f"{name} has {kind}" for kind, name in kinds.items())
            raise UsageError(f"The workers have different devices ({told}). Name one for all by --device.")
        return given or ("fp16" if "cuda" in kinds else "fp32")

    def extract(
        self, writer: CacheWriter, videos: Sequence[Video], order: Order, forgiven: Set[str], tell: Tell
    ) -> list[VideoRow]:
        self._make_ready(order, videos, tell)
        rows: list[VideoRow] = []
        for made in self._results(order, videos):
            rows.append(_taken(writer, made))
            tell(Progress("videos", len(rows), len(videos), rows[-1].reason or rows[-1].name))
            _stop_when_nothing_works([row for row in rows if row.id not in forgiven])
        return rows

    def _make_ready(self, order: Order, videos: Sequence[Video], tell: Tell) -> None:
        step = -(-len(videos) // _SAMPLE)
        sample = [(video.path, video.path.stat().st_size) for video in videos[::step] if video.path.is_file()]
        marks = {name: f"worker-{number}" for number, name in enumerate(self._workers())}
        tell(Progress("workers", 0, len(marks)))
        problems = self._ask_all(station.make_ready, order, each=marks, more=(sample,))
        for number, (name, problem) in enumerate(problems.items(), start=1):
            if not problem and not _appears(order.folder / marks[name]):
                problem = (
                    f"writes to another {order.folder.parent} than this machine sees: --out must be on shared storage"
                )
            if problem:
                raise UsageError(f"worker {name} {problem}.")
            tell(Progress("workers", number, len(marks), name))

    def _results(self, order: Order, videos: Sequence[Video]) -> Iterator[Made]:
        """What comes back, as it comes."""
        with self._forgiving(), self._watched() as watch:
            with joblib.parallel_config("dask", client=self._client):
                _never_here()
                # All at once, not as many as there are workers now: more may come.
                parallel = joblib.Parallel(batch_size=1, return_as="generator_unordered", pre_dispatch="all")
                made = parallel(joblib.delayed(station.extract_one)(order, video) for video in videos)
            try:
                yield from made
            except CostlError:
                raise
            except Exception as error:
                if self._client.status == "running":
                    raise
                lost = watch.problem or f"{self._address}: the scheduler is gone."
                raise CostlError(f"{lost} What was finished is kept; the same command goes on from there.") from error
            finally:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # joblib says that results are thrown away: they are
                    made.close()

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        """The scheduler gives up on a task after a few lost workers, a task that only waited its turn there, too; and
        joblib never hears of it and waits for ever. Whom to blame is known better by the marks of `station`.
        """
        from distributed import SchedulerPlugin

        class Forgive(SchedulerPlugin):
            def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
                for key, task in scheduler.tasks.items():
                    if "extract_one" in str(key):
                        task.suspicious = 0

        name = f"costl-{secrets.token_hex(4)}"
        self._client.register_plugin(Forgive(), name=name)
        try:
            yield
        finally:
            with suppress(OSError, ValueError, RuntimeError):  # the scheduler may be gone
                if self._client.status == "running":
                    self._client.unregister_scheduler_plugin(name)

    @contextmanager
    def _watched(self) -> Iterator[_Watch]:
        watch = _Watch(self._client)
        watch.start()
        try:
            yield watch
        finally:
            watch.over.set()
            watch.join()

    def _workers(self) -> list[str]:
        return sorted(self._client.nthreads())

    def _ask_all(
        self, question: Callable[..., Any], *arguments: Any, each: Mapping[str, Any] | None = None, more: Sequence = ()
    ) -> dict[str, Any]:
        """Every worker's answer: `question(*arguments, each[worker], *more)`, all at once."""
        names = list(each or self._workers())
        if not names:
            raise UsageError(
                f"{self._address}: the scheduler has no workers. Start some: {_DAEMON} dask worker {self._address}"
            )
        asked = {
            name: self._client.submit(
                question, *arguments, *([each[name], *more] if each else more), workers=[name], pure=False
            )
            for name in names
        }
        return {name: self._answer(name, future) for name, future in asked.items()}

    def _answer(self, name: str, future: Any) -> Any:
        try:
            return future.result(timeout=_ANSWER_S)
        except CostlError as error:
            raise UsageError(f"worker {name}: {error}") from error
        except Exception as error:  # whatever its Python could not import, or what the scheduler could not read
            cause = error.__cause__ or error
            raise UsageError(
                f"worker {name} cannot run CoSTL ({type(cause).__name__}: {str(cause)[:200]}). "
                "Install the same version on every worker and where the scheduler runs."
            ) from error


class _Watch(threading.Thread):
    """Ends the waiting when there has been nobody to do the work for a minute: joblib would wait for ever."""

    def __init__(self, client: Any):
        super().__init__(daemon=True, name="costl-watch")
        self.over, self.problem, self._client = threading.Event(), "", client

    def run(self) -> None:
        """Until `over` is set."""
        seen_s = time.monotonic()
        while not self.over.wait(min(2.0, _NO_WORKER_S / 4)):
            with suppress(OSError, ValueError, RuntimeError):  # the scheduler is gone, which the tasks will say
                if self._client.nthreads():
                    seen_s = time.monotonic()
            if time.monotonic() - seen_s > _NO_WORKER_S:
                self.problem = f"No worker has been left for {_NO_WORKER_S:.0f} s."
                self._client.close()  # which ends every wait for a result
                return


@contextmanager
def _run_folder(parts: Path) -> Iterator[Path]:
    """A folder for this run's marks; while it is there the workers go on. Those of killed runs are taken away."""
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
        for stray in parts.glob(".*.tmp"):  # of workers that were lost
            stray.unlink(missing_ok=True)


def _never_here() -> None:
    """joblib does the tasks of a cluster of one thread in this process instead, unless it believes there are two."""
    backend, _ = get_active_backend()
    threads = backend.effective_n_jobs
    backend.effective_n_jobs = lambda n_jobs: max(2, threads(n_jobs))


def _refuse_versions(name: str, there: Mapping[str, str], here: Mapping[str, str]) -> None:
    differences = explain_difference(here, there, was="here", now="there")
    if differences:
        raise UsageError(f"worker {name} has other versions ({'; '.join(differences)}). Install the same everywhere.")


def _appears(path: Path) -> bool:
    until_s = time.monotonic() + _SEEN_S
    while not path.exists() and time.monotonic() < until_s:
        time.sleep(0.2)
    return path.exists()


def _taken(writer: CacheWriter, made: Made) -> VideoRow:
    if made.row.ok and not _appears(writer.parts / made.row.part):
        raise CacheError(
            f"worker {made.worker} has written {made.row.part}, but it is not in {writer.parts} as seen here."
        )
    return writer.adopt(made.row)


def _stop_when_nothing_works(rows: Sequence[VideoRow]) -> None:
    last = rows[-FAILURES_IN_A_ROW:]
    if len(last) == FAILURES_IN_A_ROW and not any(row.ok for row in last):
        raise CostlError(
            f"{FAILURES_IN_A_ROW} videos in a row failed, the last one: {last[-1].reason} "
            "This looks like the machines or the folder, not the videos; what was finished is kept."
        )
