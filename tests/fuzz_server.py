"""Runs scripts of the checkout for tests: one process has imported them, and each call is a fork of it.

It reads {"script", "argv", "cwd", "seconds"} a line from stdin and answers {"status", "out", "err", "hung"}, status
None where the call was killed. A call has MEMORY bytes of its own and no stdin. With "file_bytes" its files may not
grow beyond so many, with "stdout" its output goes to that file.
"""

import importlib
import io
import json
import os
import resource
import select
import signal
import sys
import tempfile
import traceback

MEMORY = 6 * 2**30
MOST_SHOWN = 4000  # characters of what a call has printed


def limit_memory():
    with open("/proc/self/statm") as f:
        mapped = int(f.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))


def call(script: str, argv: list[str], cwd: str, out: int, err: int, file_bytes: int | None):
    """The forked process: the script as the shell runs it. Never returns."""
    status = 1
    try:
        os.setsid()  # its workers are killed with it
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdin, sys.stdout = io.TextIOWrapper(os.fdopen(0, "rb")), io.TextIOWrapper(os.fdopen(1, "wb"), "utf-8")
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb"), "utf-8", "backslashreplace", line_buffering=True)
        os.chdir(cwd)
        sys.argv = [f"{script}.py", *argv]
        limit_memory()
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        status = sys.modules[script].main() or 0
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BaseException:
                traceback.print_exc()
                status = 1
        os._exit(status)


def serve(job: dict) -> dict:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            stdout = out.fileno()
            if "stdout" in job:
                stdout = os.open(job["stdout"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            call(job["script"], job["argv"], job["cwd"], stdout, err.fileno(), job.get("file_bytes"))
        ended = os.pidfd_open(pid)
        hung = not select.select([ended], [], [], job["seconds"])[0]
        os.close(ended)
        if hung:
            os.killpg(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        shown = []
        for stream in (out, err):
            stream.seek(0)
            shown.append(stream.read(MOST_SHOWN).decode("utf-8", "replace"))
        return {"status": None if hung else code, "out": shown[0], "err": shown[1], "hung": hung}


def main():
    for script in sys.argv[1:]:
        importlib.import_module(script)
    if "sweep" in sys.argv:  # half a minute of waits between six tries, each of them shown, is no hang
        importlib.import_module("isoflop.sweep.api").FIRST_WAIT_S = 0.01
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
