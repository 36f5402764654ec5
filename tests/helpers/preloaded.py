"""Commands in copies of a process that has imported PyTorch and open_clip already, which takes longer than most tests.

`Preloaded` is subprocess.Popen for commands of Python: a process of its own, with its own arguments, environment, working
folder and session. Modules of CoSTL are imported by the command itself. A subclass names further `modules`, which the first
of its commands imports for all.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quick_pictures import make_quick_if_wanted

ROOT = Path(__file__).parents[2]
MODULES = ("open_clip", "torch._dynamo", "torch.utils.data", "h5py", "av", "decord", "yaml", "jaxtyping", "click")
MODULES += ("matplotlib.figure", "matplotlib.backends.backend_agg", "pyarrow.parquet")
MODULES += ("pandas",)  # which pyarrow imports where it is installed


class Preloaded(subprocess.Popen):
    """`Preloaded(["-m", "costl", ...], cwd=..., env=..., stdout=...)`: the arguments after `python`, in a session of its own."""

    modules: tuple[str, ...] = ()

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest: Any) -> None:
        pipes = rest[3:9]  # both ends of each: the ends of the command are the first, the fourth and the last
        child_ends = [own if end == -1 else end for own, end in enumerate((pipes[0], pipes[3], pipes[5]))]
        self._status, theirs = os.pipe()
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # a new process inherits that
        arguments = [os.fsdecode(one) if isinstance(one, bytes) else str(one) for one in args]
        request = {"arguments": arguments, "cwd": str(cwd or Path.cwd()), "environment": dict(env or os.environ)}
        request |= {"ignores_interrupts": ignored, "modules": self.modules}
        message = json.dumps(request).encode()
        socket.send_fds(_server(), [b"%8d" % len(message)], [*child_ends, theirs])
        _server().sendall(message)
        os.close(theirs)
        self._close_pipe_fds(*pipes)
        self.pid = int(os.read(self._status, 8))
        self._child_created = True

    def _internal_poll(self, _deadstate: Any = None, **_: Any) -> int | None:
        if self.returncode is None:
            self._wait_status(0)
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        self._wait_status(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def _wait_status(self, timeout: float | None) -> None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self._handle_exitstatus(int(os.read(self._status, 8)))
            os.close(self._status)


@functools.cache
def _server() -> socket.socket:
    """A connection to the process that has imported the modules; it ends with the connection."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    command = [sys.executable, __file__, str(theirs.fileno())]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True
    )
    theirs.close()

    @atexit.register
    def end() -> None:
        ours.shutdown(socket.SHUT_RDWR)
        ours.close()
        server.wait()

    return ours


def wait_for_request(connection: socket.socket) -> dict[str, Any]:
    """Returns in a new process for each request; the process that serves returns never."""
    while True:
        length, descriptors, _, _ = socket.recv_fds(connection, 8, 4)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # those that wait for commands which have ended
                pass
        if not length:
            os._exit(0)
        request = json.loads(connection.recv(int(length), socket.MSG_WAITALL))
        import_modules(request.pop("modules"))
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    connection.close()
    *streams, status = descriptors
    child = os.fork()
    if child:
        for descriptor in (*streams, 1, 2):
            os.close(descriptor)
        os.write(status, b"%8d" % child)
        os.write(status, b"%8d" % os.waitpid(child, 0)[1])
        os._exit(0)
    os.setsid()
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    for descriptor in descriptors:
        os.close(descriptor)
    return request


def import_modules(names: Iterable[str]) -> None:
    """Imports those that are installed. The garbage collector leaves alone what they make."""
    gc.disable()
    for name in names:
        if find_spec(name.partition(".")[0]):
            importlib.import_module(name)
    gc.freeze()
    gc.enable()


def run(arguments: list[str], cwd: str, environment: dict[str, str], ignores_interrupts: bool) -> None:
    """What `python ARGUMENTS` does: -m MODULE or a script, with its own arguments."""
    signal.signal(signal.SIGINT, signal.SIG_IGN if ignores_interrupts else signal.default_int_handler)
    for number, name in enumerate(("stdin", "stdout", "stderr")):  # those of the server knew other files
        stream = os.fdopen(number, "w" if number else "r", 1 if number == 2 else -1, encoding="utf-8", closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.stderr.reconfigure(errors="backslashreplace")
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    is_module = arguments[0] == "-m"
    first = cwd if is_module else str(Path(arguments[0]).parent)
    sys.path[:1] = [first, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = arguments[is_module:]
    os.fsync = lambda descriptor: None  # as in the process of the tests
    make_quick_if_wanted()
    code: Any = None
    try:
        if is_module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        code = error.code
    end_process(code)


def end_process(code: Any) -> None:
    """Ends as Python does after `sys.exit(code)`, but frees no object: that would copy the memory of all modules first."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # nobody reads them: Python has an exit code of its own for that
        sys.exit(code)
    os._exit((code or 0) & 0xFF)


if __name__ == "__main__":
    import_modules(MODULES)
    request = wait_for_request(socket.socket(fileno=int(sys.argv[1])))
    run(**request)
