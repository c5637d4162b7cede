"""Processes forked from one that has torch and transformers loaded: fresh, without waiting for the imports again.

Importing both libraries takes seconds, and a run needs several fresh processes. The server is a Python process of its
own that imports the libraries, nothing of a model, and then waits; each request is answered by a fork of it. So a fork
owes nothing to the process that asks, just as a new interpreter would not.

    requests:  JSON {"module", "arguments", "folder", "environment", "threads"}, with the file descriptors of stdout and
               stderr beside it
    answers:   READY when the libraries are loaded, then for each request JSON {"code"}

A fork has one thread only, so the libraries must not have started others. When the asking process ends, in whatever
way, the channel closes; the server then kills what it has forked, and ends.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import traceback
import warnings
from typing import Any

from compressor.machine.libraries import without_collector
from compressor.machine.signals import end_with

PRELOADED = ("numpy", "onnx", "onnxruntime", "torch", "transformers.modeling_utils")
READY = b"+"
REQUEST_BYTES = 1 << 20
_POLL_SECONDS = 0.02


def _serve(channel: socket.socket) -> dict[str, Any] | None:
    """Answer requests; return None when the channel closes, and in each fork the request that it is to carry out."""
    while True:
        text, descriptors, _, _ = socket.recv_fds(channel, REQUEST_BYTES, 2)
        if not text:
            return None
        request: dict[str, Any] = json.loads(text)
        server = os.getpid()
        child = os.fork()
        if child == 0:
            end_with(server)
            channel.close()
            for number, descriptor in enumerate(descriptors, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)
            return request
        for descriptor in descriptors:
            os.close(descriptor)
        code = _wait(child, channel)
        if code is None:
            return None
        channel.sendall(json.dumps({"code": code}).encode())


def _wait(child: int, channel: socket.socket) -> int | None:
    """Return the exit code of a fork (minus the number of the signal that killed it), None if the channel closed."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if select.select([channel], [], [], _POLL_SECONDS)[0]:  # nothing is asked before the answer: it has closed
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None


def _carry_out(request: dict[str, Any]) -> int:
    """Be the process that was asked for, `python -m module arguments` in its folder; return the exit code."""
    import torch

    os.setsid()  # whatever this process starts dies with it
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    torch.set_num_threads(request["threads"])
    sys.argv = [request["module"], *request["arguments"]]
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Load the libraries, then serve the socket whose descriptor is the argument."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    with warnings.catch_warnings(), without_collector():
        warnings.simplefilter("ignore")
        for name in PRELOADED:
            importlib.import_module(name)
    if len(os.listdir("/proc/self/task")) > 1:
        sys.exit("a thread would be missing in every fork")
    gc.freeze()  # a collection in a fork would otherwise copy the pages of all that was imported
    request = None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        channel.sendall(READY)
        request = _serve(channel)
    if request is not None:
        code = _carry_out(request)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # taking down all that was imported would cost a second


if __name__ == "__main__":
    main()
