"""A program for `--exec` that goes wrong in the way its argument names; it needs nothing but Python.

It has rms_norm in float32, and does it right, but on the victim, a case: what follows shows what became of it.
"""

import json
import math
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

VICTIM = "zero_rows"
HELLO = {
    "type": "hello",
    "protocol": 2,
    "name": "hostile",
    "ops": ["rms_norm"],
    "dtypes": ["float32"],
    "orders": [],
    "gradients": False,
}
HELLOS = {
    "greets": "Welcome!",
    "other_protocol": HELLO | {"protocol": 3},
    "says_protocol_1": HELLO | {"protocol": 1},
    "no_licence": {"type": "error", "message": "no licence found"},
    "no_hello": {"type": "done"},
    "steers": HELLO | {"name": "\x1b[31m", "versions": {"[/red]": "\x1b[2J"}},
    "null_versions": HELLO | {"versions": None},
    "has_odd_dtypes": HELLO | {"dtypes": ["int8"]},
    "hello_and_more": json.dumps(HELLO) + "\nloading ...",
}


def say(*messages: dict | str | bytes) -> None:
    """All of it in one piece: what reads it sees all or nothing."""
    lines = [message if isinstance(message, str | bytes) else json.dumps(message) for message in messages]
    os.write(1, b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))


def wait_forever() -> None:
    """With a child that must end too, and without an ear for anything but SIGKILL."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(["sleep", "1000"])
    time.sleep(1000)


def detach(*, bare: bool = False) -> None:
    """Leave a grandchild in a session of its own, whose parent is gone; or a bare child, whose environment is empty."""
    if bare:
        child = subprocess.Popen(["/bin/sleep", "1000"], env={}, start_new_session=True)
        Path(sys.argv[2]).write_text(str(child.pid))
    elif os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", "1000"])
        os._exit(0)


def read(path: str, name: str) -> tuple[list[int], tuple[float, ...]]:
    """Shape and values of a float32 tensor in a safetensors file."""
    content = Path(path).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    entry = json.loads(content[8:start])[name]
    first, last = (start + offset for offset in entry["data_offsets"])
    return entry["shape"], struct.unpack(f"<{(last - first) // 4}f", content[first:last])


def write(path: str, values: list[float], header: dict | bytes | None = None, **fields) -> None:
    """A safetensors file of y, with a header that says otherwise."""
    data = struct.pack(f"<{len(values)}f", *values)
    entry = {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, len(data)]} | fields
    encoded = header if isinstance(header, bytes) else json.dumps(header or {"y": entry}).encode()
    Path(path).write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def rms_norm(request: dict) -> list[float]:
    """y, written where it belongs."""
    shape, x = read(request["inputs"], "x")
    _, weight = read(request["inputs"], "weight")
    d, y = len(weight), list[float]()
    for row in (x[start : start + d] for start in range(0, len(x), d)):
        rstd = 1 / math.sqrt(sum(value * value for value in row) / d + request["eps"])
        y += [value * rstd * scale for value, scale in zip(row, weight, strict=True)]
    write(request["outputs"], y, shape=shape)
    return y


def answers(way: str, request: dict) -> list[dict | str | bytes]:
    """What is said to the victim, done where nothing else is returned."""
    done = {"type": "done", "id": request["id"]}
    outputs = Path(request["outputs"])
    folder = outputs.parent
    match way:
        # Ends.
        case "exits_0" | "exits_1":
            sys.exit(int(way[-1]))
        case "exits_amid_its_answer":
            os.write(1, json.dumps(done).encode()[:9])
            os._exit(0)
        case "exits_after_its_answer":
            rms_norm(request)
            say(done)
            os._exit(3)
        case "is_killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "crashes":
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.kill(os.getpid(), signal.SIGSEGV)
        case "kills_its_group":
            os.killpg(0, signal.SIGTERM)
        case "real_time_signal":
            os.kill(os.getpid(), signal.SIGRTMIN + 1)
        case "runs_out_of_memory":
            resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
            bytearray(1 << 40)
        case "shouts":
            sys.exit("first words" + "!" * 100_000 + " last words")
        # Hangs.
        case "hangs":
            wait_forever()
        case "hangs_after_its_answer":
            rms_norm(request)
            say(done)
            wait_forever()
        case "closes_stdout":
            os.close(1)
            time.sleep(1000)
        case "closes_stdin":
            rms_norm(request)
            os.close(0)
            say(done)
            time.sleep(1000)
        # Leaves children.
        case "leaves_a_child":
            subprocess.Popen(["sleep", "1000"])  # which holds stdout open
            sys.exit("out of memory")
        case "detaches":
            detach()
            detach(bare=True)
            rms_norm(request)
        case "detaches_and_hangs":
            detach()
            detach(bare=True)
            wait_forever()
        case "detaches_and_exits":
            detach()
            sys.exit(4)
        # Floods.
        case "floods_stdout":
            while True:
                os.write(1, b"x" * (1 << 20))
        case "floods_stdout_with_lines":
            while True:
                os.write(1, b"loss 0.31\n" * (1 << 16))
        case "floods_stderr":
            while True:
                os.write(2, b"x" * (1 << 20))
        case "says_much_on_stderr":
            for _ in range(64):
                os.write(2, b"x" * (1 << 20))
            rms_norm(request)
        # Says what is no answer.
        case "prints":
            return ["loss 0.31"]
        case "prints_before_its_answer":
            rms_norm(request)
            return ["loss 0.31", done]
        case "prints_after_its_answer":
            rms_norm(request)
            return [done, "loss 0.31"]
        case "lists":
            return ["[1, 2, 3]"]
        case "nests":
            return ["[" * 100_000]
        case "nests_an_id":
            return ['{"type": "done", "id": ' + "[" * 100_000 + "]" * 100_000 + "}"]
        case "counts_to_infinity":
            return ['{"type": "done", "id": ' + "9" * 100_000 + "}"]
        case "is_not_utf8":
            return [b'{"type": "done\xff\xfe", "id": \xc0}']
        case "is_a_surrogate":
            return [r'{"type": "error", "id": ' + str(request["id"]) + r', "message": "\ud800\u001b[2J"}']
        case "nan_id":
            return ['{"type": "done", "id": NaN}']
        case "wrong_id":
            return [done | {"id": -1}]
        case "true_id":
            return [done | {"id": True}]
        case "no_id":
            return [{"type": "done"}]
        case "wrong_type":
            return [done | {"type": "perhaps"}]
        case "hello_again":
            return [HELLO | {"id": request["id"]}]
        case "no_text":
            return [done | {"type": "skip", "reason": {"because": None}}]
        case "no_list":
            rms_norm(request)
            return [done | {"overwrote": "x"}]
        case "answers_twice":
            rms_norm(request)
            return [done, done]
        case "answers_ahead":
            rms_norm(request)
            return [done, done | {"id": request["id"] + 1}]
        case "answers_the_next":
            rms_norm(request)
            return [done | {"id": request["id"] + 1}]
        case "answers_again_when_asked_again":
            rms_norm(request)
            say(done)
            sys.stdin.readline()
            return [done]
        case "answers_once" if request["id"] == 0:
            shutil.copy(request["inputs"], outputs)
            return [done]
        # Writes what is no outputs file.
        case "breaks_file":
            outputs.write_text("y = 1.0, and so on")
        case "writes_half":
            rms_norm(request)
            os.truncate(outputs, outputs.stat().st_size // 2)
        case "writes_an_empty_file":
            outputs.touch()
        case "header_of_2_63":
            outputs.write_bytes((1 << 63).to_bytes(8, "little") + b"{}")
        case "header_is_nested":
            write(str(outputs), [], b"[" * 100_000)
        case "huge_shape":
            write(str(outputs), [1.0], shape=[1 << 31, 1 << 31])
        case "huge_and_empty_shape":
            write(str(outputs), [], shape=[0, 1 << 63])
        case "negative_shape":
            write(str(outputs), [1.0], shape=[-1, -1])
        case "fractional_shape":
            write(str(outputs), [1.0], shape=[1.0])
        case "long_offsets":
            write(str(outputs), [1.0], data_offsets=[0, 1 << 40])
        case "sparse_file":
            outputs.touch()
            os.truncate(outputs, 1 << 40)
        case "folder_for_outputs":
            outputs.mkdir()
        case "fifo_for_outputs":
            os.mkfifo(outputs)
        case "device_for_outputs":
            outputs.symlink_to("/dev/zero")
        case "link_to_itself":
            outputs.symlink_to(outputs)
        case "link_to_nothing":
            outputs.symlink_to(folder / "nothing")
        case "not_a_number":
            shape, x = read(request["inputs"], "x")
            write(str(outputs), [math.nan] * len(x), shape=shape)
        case "wrong_dtype":
            shape, x = read(request["inputs"], "x")
            write(str(outputs), [0.0] * 2 * len(x), dtype="F64", shape=shape)
        # Reaches for what is not its own.
        case "is_slow":
            rms_norm(request)
        case "litters":
            (folder / "cache" / "deep").mkdir(parents=True)
            (folder / "cache" / "deep" / "junk").write_text("junk")
            rms_norm(request)
        case "deletes_its_inputs":
            rms_norm(request)
            os.unlink(request["inputs"])
        case "edits_its_inputs":
            rms_norm(request)
            Path(request["inputs"]).write_text("nothing")
        case "deletes_the_folder":
            shutil.rmtree(folder)
        case "links_the_folder":
            rms_norm(request)
            os.rename(folder, folder.with_name("elsewhere"))
            folder.symlink_to(folder.with_name("elsewhere"))
        case "file_for_folder":
            shutil.rmtree(folder)
            folder.touch()
        case "writes_on_and_on":
            rms_norm(request)
            threading.Thread(target=litter_for_ever, args=(folder,), daemon=True).start()
        case "meets":
            mine, theirs = map(Path, sys.argv[2:])
            mine.touch()
            while not theirs.exists():
                time.sleep(0.01)
            return [done | {"type": "skip", "reason": "we met"}]
    return [done]  # without a file, where the way is "no_file"


def litter_for_ever(folder: Path) -> None:
    """New files, faster than they are removed."""
    for number in range(1 << 30):
        folder.mkdir(exist_ok=True)
        (folder / f"{number}").touch()


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
            time.sleep(0.3 * (way == "is_slow"))
            say(HELLOS.get(way, HELLO))
        elif way == "steers":
            say({"type": "error", "id": request["id"], "message": "\x1b[2J [/red] [link=x]", "detail": "\x1b[2J"})
        elif request["case"].endswith(f"/{VICTIM}"):
            say(*answers(way, request))
        else:
            rms_norm(request)
            say({"type": "done", "id": request["id"]})
