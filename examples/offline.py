"""RMSNorm where the kit is not: `python offline.py FIXTURES DIR` reads inputs, writes outputs; then `conformance judge DIR`."""

import json
import sys
from pathlib import Path

import numpy as np

NAMES = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}  # of the dtypes in safetensors files


def read(path: Path) -> dict[str, np.ndarray]:
    """8 bytes of header length, a header in JSON, then the tensors, row-major."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    entries = {name: (NAMES[e["dtype"]], e["shape"], e["data_offsets"]) for name, e in json.loads(data[8:start]).items()}
    return {n: np.frombuffer(data[start:][a:b], dtype).reshape(shape) for n, (dtype, shape, (a, b)) in entries.items()}


def write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """The same backwards, for float32."""
    ends = np.cumsum([0, *(tensor.nbytes for tensor in tensors.values())]).tolist()
    places = zip(tensors.items(), ends, ends[1:], strict=False)
    header = json.dumps({n: {"dtype": "F32", "shape": t.shape, "data_offsets": [a, b]} for (n, t), a, b in places}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"".join(tensor.tobytes() for tensor in tensors.values()))


if len(sys.argv) != 3:
    sys.exit("usage: python offline.py FIXTURES DIR, such as: python examples/offline.py conformance/fixtures answers")
fixtures, folder = map(Path, sys.argv[1:])
for case in json.loads((fixtures / "manifest.json").read_text(encoding="utf-8"))["cases"]:
    if (case["op"], case["dtype"]) == ("rms_norm", "float32"):
        given = read(fixtures / case["file"])
        x, weight = given["x"], given.get("weight", np.float32(1)) + np.float32(case["dialect"]["weight_offset"])
        with np.errstate(all="ignore"):  # NaN and infinity are among the inputs
            group = case["settings"].get("group_size", x.shape[-1])  # so many features have a mean square of their own
            rows = x.reshape(*x.shape[:-1], x.shape[-1] // group, group)
            x_hat = rows / np.sqrt(np.mean(rows * rows, axis=-1, keepdims=True) + np.float32(case["eps"]))
        write(folder / case["file"], {"y": weight * x_hat.reshape(x.shape)})
(folder / "port.json").write_text(
    json.dumps({"name": "offline", "dtypes": ["float32"], "ops": ["rms_norm"], "gradients": False})
)
