"""The stage `train` whose adapters learn as one weight a layer, as on a GPU; a child process imports it."""

from collections.abc import Callable

from tunestation.pipeline.job import Job, Result
from tunestation.stages import train


def run(params: dict, job: Job) -> Result:
    """Train."""
    train._joins = lambda *_: True
    return train.run(params, job)


def stop(params: dict, job: Job) -> Result:
    """Train one step and be stopped."""
    return _stopped(run, params, job)


def alone(params: dict, job: Job) -> Result:
    """The same, each adapter being a weight of its own."""
    return _stopped(train.run, params, job)


def _stopped(function: Callable, params: dict, job: Job) -> Result:
    request = train.stop_file(job)
    request.touch()
    try:
        return function(params, job)
    finally:
        request.unlink(missing_ok=True)
