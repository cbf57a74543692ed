"""Runs commands one after the other, each in a process of its own that begins with everything imported.

Reads a JSON object a line, `argv` and `folder`, runs the command in that folder, and answers with `code`, `seconds`,
`megabytes` (the most it held at once), `out` and `err`. A command that takes too long or too much is ended: `code` is
then "hangs" or "memory".
"""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

SECONDS, MEGABYTES = 120, 4000
PAGE = os.sysconf("SC_PAGE_SIZE")


def child(argv: list[str], folder: str) -> None:
    """Run a command and end this process with its exit code."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        for name, number in (("out", 1), ("err", 2)):
            os.dup2(os.open(f"../{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        from vitrail.cli import main

        code = main(argv)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def megabytes(pid: int) -> float:
    """What a process holds now."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 1e6
    except (OSError, IndexError):
        return 0.0


def run(argv: list[str], folder: str) -> dict:
    """The outcome of one command."""
    started, most, code = time.monotonic(), 0.0, None
    pid = os.fork()
    if pid == 0:
        child(argv, folder)
    while code is None:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            break
        most = max(most, megabytes(pid))
        if most > MEGABYTES or time.monotonic() - started > SECONDS:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            code = "memory" if most > MEGABYTES else "hangs"
        time.sleep(0.01)
    texts = {n: Path(folder, "..", n).read_bytes().decode("utf-8", "backslashreplace") for n in ("out", "err")}
    return {"code": code, "seconds": time.monotonic() - started, "megabytes": most, **texts}


if __name__ == "__main__":
    import faster_coco_eval  # noqa: F401
    import torch

    import vitrail.cli
    import vitrail.deploy.export.runtime
    import vitrail.engine.evaluate
    import vitrail.engine.predict
    import vitrail.engine.trainer  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(run(asked["argv"], asked["folder"])), flush=True)
