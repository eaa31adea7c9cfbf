"""The most bytes that tensors take up in a training step."""

import gc
import json
import os
import tempfile
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from studies.norms.step import Step


def peak_bytes(step: Step, device: torch.device) -> int:
    """Of the second step, for the first makes AdamW's moments, and compiles.

    On a GPU what torch's caching allocator has given out, `max_memory_allocated`; on a CPU, which has no such counter, what
    is there before, and the most that the allocator's own events in torch's profile add to it.
    """
    step()
    gc.collect()  # what an earlier model left
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    return held_bytes(step) + most_allocated(step)


def held_bytes(step: Step) -> int:
    """Of what is there before a step: weights, moments, input."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in step.held()}
    return sum(storages.values())


def most_allocated(step: Step) -> int:
    """The greatest sum of what has been allocated and not yet freed since the step began."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler announces itself on stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        step()
    with tempfile.TemporaryDirectory(prefix="study-") as folder:
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        events = json.loads(path.read_bytes())["traceEvents"]
    changes = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    return max(accumulate(event["args"]["Bytes"] for event in changes), default=0)
