"""`dlen` on two ranks, job after job, as torchrun starts them, but forked: torch and TorchRec are imported once.

The argument is JSON: [{"die_before": step or null, "log": file, "arguments": [...]}, ...]. As under torchrun, a rank
that fails ends its job; the exit status is 1 if a job did not end as wanted, dying where it should and nowhere else.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback

from dying_rank import die_before

from cli import main
from training.sharded import _torchrec

RANKS = 2


def rank(number: int, port: int, job: dict) -> int:
    """Fork one rank of a job and return its process number."""
    if child := os.fork():
        return child
    code = 70
    try:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": RANKS, "MASTER_PORT": port}
        os.environ |= {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in place.items()}
        if job["die_before"] is not None:
            die_before(job["die_before"])
        code = main(job["arguments"])
    finally:  # the fork ends here, showing what a process of its own would show
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(job: dict) -> bool:
    """Run a job; return whether its ranks all ended well, or, where one is to die, whether it was killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running, killed, good = {rank(number, port, job) for number in range(RANKS)}, False, True
    while running:
        process, status = os.wait()
        running.discard(process)
        killed = killed or (os.WIFSIGNALED(status) and good and os.WTERMSIG(status) == signal.SIGKILL)
        if status and good:
            good = False
            for other in running:
                os.kill(other, signal.SIGKILL)
    return good if job["die_before"] is None else killed


if __name__ == "__main__":
    _torchrec()
    sys.exit(0 if all([run(job) for job in json.loads(sys.argv[1])]) else 1)
