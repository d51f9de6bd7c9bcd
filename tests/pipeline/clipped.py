"""The stage `train` that counts how often it clips, and one that leaves clipping to DeepSpeed; a child process imports it."""

from dataclasses import replace

from tunestation.pipeline.job import Job, Result
from tunestation.stages import train
from tunestation.training import callbacks, clipping


def run(params: dict, job: Job) -> Result:
    """Train; the result tells how often gradients were clipped."""
    calls, clip = [], clipping.unscale_and_clip
    clipping.unscale_and_clip = lambda *given: calls.append(len(given)) or clip(*given)
    result = train.run(params, job)
    return replace(result, observed=result.observed | {"clipped": len(calls)})


def deepspeeds(params: dict, job: Job) -> Result:
    """Train as DeepSpeed clips."""
    callbacks.without_waiting = lambda _optimizer: None
    return train.run(params, job)
