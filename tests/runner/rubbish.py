"""A program for `--exec` that breaks the protocol in the way its argument names; it needs nothing but Python.

It claims rms_norm in float32 and skips every case but the victim, so that whatever follows shows whether it was restarted.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

VICTIM = "zero_rows"
HELLO = {
    "type": "hello",
    "protocol": 1,
    "name": "rubbish",
    "ops": ["rms_norm"],
    "dtypes": ["float32"],
    "orders": [],
    "gradients": False,
}
HELLOS = {
    "greets": "Welcome!",
    "other_protocol": HELLO | {"protocol": 2},
    "no_ops": {name: value for name, value in HELLO.items() if name != "ops"},
    "dtypes_in_a_string": HELLO | {"dtypes": "float32"},
    "nested_offsets": HELLO | {"weight_offsets": [[0]]},
    "offset_of_two": HELLO | {"weight_offsets": [0, 2]},
    "numbered_orders": HELLO | {"orders": [1, 2]},
    "perhaps_gradients": HELLO | {"gradients": "perhaps"},
    "null_versions": HELLO | {"versions": None},
    "no_licence": {"type": "error", "message": "no licence found"},
    "no_hello": {"type": "done"},
}


def wait_forever() -> None:
    """With a child that must end too, and without an ear for anything but SIGKILL."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(["sleep", "1000"])
    time.sleep(1000)


def answer(way: str, request: dict) -> dict | str:
    """The answer to the victim, or what stands in its place."""
    done = {"type": "done", "id": request["id"]}
    match way:
        case "prints":
            return "loss 0.31"
        case "lists":
            return "[1, 2, 3]"
        case "nests":
            return "[" * 100_000
        case "wrong_id":
            return done | {"id": -1}
        case "wrong_type":
            return done | {"type": "perhaps"}
        case "breaks_file":
            Path(request["outputs"]).write_text("y = 1.0, and so on")
        case "answers_once" if request["id"] == 0:
            shutil.copy(request["inputs"], request["outputs"])
        case "no_list":
            shutil.copy(request["inputs"], request["outputs"])
            return done | {"overwrote": "x"}
        case "closes_stdout":
            os.close(1)
            time.sleep(1000)
        case "hangs":
            wait_forever()
        case "shouts":
            sys.exit("first words" + "!" * 100_000 + " last words")
        case "real_time_signal":
            os.kill(os.getpid(), signal.SIGRTMIN + 1)
        case "leaves_a_child":
            subprocess.Popen(["sleep", "1000"])  # which holds stdout open
            sys.exit("out of memory")
        case "meets":
            mine, theirs = map(Path, sys.argv[2:])
            mine.touch()
            while not theirs.exists():
                time.sleep(0.01)
            return done | {"type": "skip", "reason": "we met"}
    return done  # without a file: the way called "no_file"


if __name__ == "__main__":
    way = sys.argv[1]
    if way == "sleeps":
        wait_forever()
    for line in sys.stdin:
        request = json.loads(line)
        if request["type"] == "bye":
            if way == "ignores_bye":
                wait_forever()
            if way == "tidies_up":
                Path(sys.argv[2]).write_text("tidy")
            break
        if request["type"] == "hello":
            message = HELLOS.get(way, HELLO)
        elif request["case"].endswith(f"/{VICTIM}"):
            message = answer(way, request)
        else:
            message = {"type": "skip", "id": request["id"], "reason": "only the victim matters here"}
        print(message if isinstance(message, str) else json.dumps(message), flush=True)
