"""The stage `train` that counts how often it clips and waits, and one that leaves clipping to DeepSpeed; a child process imports it."""

from dataclasses import replace

from deepspeed.utils import timer

from tunestation.pipeline.job import Job, Result
from tunestation.stages import train
from tunestation.training import callbacks, clipping


def run(params: dict, job: Job) -> Result:
    """Train; the result tells how often gradients were clipped, and how often DeepSpeed's clock waited for the device."""
    calls, waits, clip, accelerator = [], [], clipping.unscale_and_clip, timer.get_accelerator
    clipping.unscale_and_clip = lambda *given: calls.append(len(given)) or clip(*given)
    timer.get_accelerator = lambda: waits.append(None) or accelerator()
    result = train.run(params, job)
    return replace(result, observed=result.observed | {"clipped": len(calls), "waited": len(waits)})


def deepspeeds(params: dict, job: Job) -> Result:
    """Train as DeepSpeed clips."""
    callbacks.without_waiting = lambda _optimizer: None
    return train.run(params, job)
