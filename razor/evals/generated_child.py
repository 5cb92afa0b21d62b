"""Run inside the child of `razor.evals.generated_code`: limits first, then a program that a model wrote.

This file is run by its path, in a bare interpreter, and imports nothing of Razor. The program and a secret come in
on stdin; the secret goes back on a pipe only after the program has come to its end, so one that leaves early with
exit code 0 has not passed.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import types

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000  # linux/sched.h
FORBIDDEN = (
    "socket.",
    "subprocess.",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "os.kill",
)
WRITING = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "os.link",
    "os.symlink",
)


def limit(seconds: int, memory: int, file_size: int) -> None:
    """Bounds of the operating system, where it has them: they hold whatever the program does."""
    try:
        import resource
    except ImportError:  # Windows: the parent's clock alone
        return
    for name, value in (
        ("RLIMIT_CPU", seconds),
        ("RLIMIT_AS", memory),
        ("RLIMIT_DATA", memory),
        ("RLIMIT_FSIZE", file_size),
        ("RLIMIT_CORE", 0),
    ):
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (ValueError, OSError):  # macOS knows some of them by name only
            continue


def without_network() -> bool:
    """Enter a network of our own that has no device; False where the system does not let us."""
    if not sys.platform.startswith("linux"):
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "unshare", None)
    return call is not None and call(NEW_USER | NEW_NETWORK) == 0


def guard(home: str) -> None:
    """Refuse what a solution never needs: the network, other processes, writing outside of its folder."""
    inside = os.path.realpath(home) + os.sep

    def refuse(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith(FORBIDDEN):
            raise PermissionError(f"{event} is not for generated code")
        if event in WRITING or (event == "open" and _writes(arguments)):
            path = arguments[0]
            if isinstance(path, int) or not os.path.realpath(str(path)).startswith(inside):
                raise PermissionError(f"{event} outside of its folder is not for generated code")

    sys.addaudithook(refuse)


def _writes(arguments: tuple[object, ...]) -> bool:
    mode, flags = (*arguments, None, None)[1:3]
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def main() -> None:
    """Read what to run, run it, and give the secret back if it came to its end."""
    job = json.loads(sys.stdin.buffer.read())
    pipe = int(job["pipe"])
    limit(job["seconds"], job["memory"], job["file_size"])
    without_network()
    guard(os.getcwd())
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    try:
        exec(compile(job["program"], "<generated>", "exec"), module.__dict__)
    except BaseException as error:  # SystemExit too: a program that leaves has not passed
        os.write(pipe, type(error).__name__.encode()[:200])
        os._exit(1)
    os.write(pipe, job["secret"].encode())
    os._exit(0)


if __name__ == "__main__":
    main()
