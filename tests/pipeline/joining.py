"""The stage `train` whose adapters learn as one weight a layer, as on a GPU; a child process imports it."""

from stopping import stopped

from tunestation.pipeline.job import Job, Result
from tunestation.stages import train


def run(params: dict, job: Job) -> Result:
    """Train."""
    train._joins = lambda *_: True
    return train.run(params, job)


def stop(params: dict, job: Job) -> Result:
    """Train one step and be stopped."""
    return stopped(run, params, job)


def alone(params: dict, job: Job) -> Result:
    """The same, each adapter being a weight of its own."""
    return stopped(train.run, params, job)
