"""`python -m tunestation.chat.main JOB.json`: the page, the API, the terminal, or answers on standard output."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tunestation.chat.weights import Weights
from tunestation.errors import TunestationError
from tunestation.recipe.base import Part
from tunestation.recipe.schema import Generation

if TYPE_CHECKING:
    from tunestation.chat.engine import Engine


class ChatJob(Part):
    """What the parent asks this process to do."""

    action: Literal["page", "serve", "terminal", "ask"]
    """page: the chat page and the API; serve: the API alone; terminal: a conversation here; ask: answer `prompts` and end."""
    name: str
    """Of the model in the API."""
    title: str
    """Heading of the page."""
    weights: Weights
    """What to load."""
    folder: str
    """Where conversations and votes are kept."""
    system: str | None = None
    """System text of every conversation."""
    generation: Generation = Generation()
    """How answers are drawn."""
    examples: tuple[str, ...] = ()
    """Questions offered on the page."""
    port: Annotated[int, Field(ge=1, le=65535)] = 7860
    host: str = "127.0.0.1"
    """The address to listen on."""
    public: bool = False
    """Listen on every address, and demand a password."""
    prompts: tuple[str, ...] = ()
    """Questions of `ask`."""
    as_json: bool = False
    """`ask` prints one JSON object a question."""
    seed: int = 0
    """Of the answers of `ask`."""


def main(arguments: list[str]) -> int:
    """Run the job in the file `arguments[0]`; returns the exit code."""
    job = ChatJob.model_validate_json(Path(arguments[0]).read_text(encoding="utf-8"))
    typed = sys.stdin
    try:
        _quiet()
        if job.action == "ask":
            from tunestation.chat.ask import ask

            with _engine(job) as engine:
                ask(engine, job)
        elif job.action == "terminal":
            from tunestation.chat.terminal import Terminal

            with _engine(job) as engine:
                Terminal(engine, job, typed).run()
        else:
            _serve(job)
    except TunestationError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _quiet() -> None:
    """Libraries print no progress, no advice, and ask nothing: a question about remote code is answered by the end of file."""
    import transformers

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # DeepSpeed logs to standard output, which is the answers' alone
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    sys.stdin = io.StringIO()


@contextmanager
def _engine(job: ChatJob) -> Iterator[Engine]:
    """The engine of the job; its thread must have ended before the interpreter does."""
    from tunestation.chat.engine import WAITING, Engine

    engine = Engine(job.weights, waiting=max(WAITING, len(job.prompts)))
    try:
        yield engine
    finally:
        engine.close()


def _serve(job: ChatJob) -> None:
    from tunestation.chat import server
    from tunestation.chat.guard import Guard

    password, generated = server.choose_password() if job.public else (None, False)
    host = server.EVERY_HOST if job.public else job.host
    server.check_port(host, job.port)
    with _engine(job) as engine:
        app = _app(job, engine, password)
        what = f"Chat with {job.title}" if job.action == "page" else f"API of {job.name}"
        shown = server.LOCAL_HOST if host == server.EVERY_HOST else host
        where = f"http://{shown}:{job.port}{'' if job.action == 'page' else '/v1'}"
        print(engine.summary(), flush=True)
        if generated:
            print(f"Password (of the page, with any user name, and of the API, as its key): {password}", flush=True)
        server.serve(Guard(app, password), host, job.port, f"{what} at {where}  (Ctrl-C stops it)")


def _app(job: ChatJob, engine: Engine, password: str | None):
    from tunestation.chat.api import build_api

    app = build_api(engine, job.name, job.generation)
    if job.action == "page":
        from tunestation.chat.page import add_page
        from tunestation.chat.talks import Shelf, Votes

        kept = Shelf(Path(job.folder) / "conversations"), Votes(Path(job.folder) / "votes.jsonl")
        add_page(app, engine, job.name, job.title, job.system or "", job.generation, job.examples, kept, password)
    return app


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
