"""The stage `train` whose model waits in host memory from before it is loaded, as on a small GPU; a child process imports it."""

from dataclasses import replace

from stopping import stopped

from tunestation.pipeline.job import Job, Result
from tunestation.stages import train
from tunestation.training import memory

ALL = memory.Host(embedding=True, inputs=True, weights=2)
choose = memory.choose


def run(params: dict, job: Job) -> Result:
    """Train; the rehearsal finds that all must go on waiting."""

    def chosen(*given: object, **options: object) -> memory.Choice:
        choice = choose(*given, **options)
        return replace(choice, input=len(choice.levels), attention=0, everything=0, dense=0, more=0, host=ALL)

    memory.choose = chosen
    return run_and_come_back(params, job)


def run_and_come_back(params: dict, job: Job) -> Result:
    """Train; the rehearsal finds room for everything on the GPU."""
    train._waits = lambda *_: ALL
    return train.run(params, job)


def stop(params: dict, job: Job) -> Result:
    """Train one step and be stopped."""
    return stopped(run, params, job)
