"""llama.cpp in a process of its own, which decodes and times what it is asked for.

It sets up AMX's tiles once for each thread and relies on them from then on; torch sets up others:
in one process the two crashed. A build that does not suit the processor crashes, too, and ends the
worker only. Requests and replies are pickled to the standard streams of a child without torch.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks import greedy
from benchmarks.llama_cpp_api import BUILD, Model
from benchmarks.unavailable import Unavailable


class Worker:
    """A child that has loaded a file. Raises `Unavailable` if it ends before it has answered."""

    def __init__(self, path: Path, threads: int) -> None:
        self.path = path
        self.child = subprocess.Popen(
            [sys.executable, "-m", __name__, str(path), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.size = int(self.ask("size"))
        self.ask("turn", 2, 0.0)

    def ask(self, what: str, *arguments: Any) -> Any:
        """The answer to "size", "logits" or "turn" with its arguments."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        try:
            pickle.dump((what, arguments), self.child.stdin)
            self.child.stdin.flush()
            return pickle.load(self.child.stdout)
        except (EOFError, BrokenPipeError) as ended:
            self.close()
            raise Unavailable(
                f"llama.cpp {self.path.stem}: its process ended with {self.child.returncode}; "
                f"if it crashed in AMX code, build it anew: {BUILD} llama-cpp-python"
            ) from ended

    def close(self) -> None:
        """End the child; nothing can be asked any more."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        with suppress(BrokenPipeError):  # a request that a dead child did not take
            self.child.stdin.close()
        self.child.stdout.close()
        self.child.wait()


def main() -> None:
    # What llama.cpp prints must not get between the replies.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    model = Model(Path(sys.argv[1]), int(sys.argv[2]))
    answers = {
        "size": lambda: model.size,
        "logits": lambda: greedy.logits(model),
        "turn": lambda tokens, seconds: greedy.turn(model, tokens, seconds),
    }
    while True:
        try:
            what, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(answers[what](*arguments), replies)
        replies.flush()


if __name__ == "__main__":
    main()
