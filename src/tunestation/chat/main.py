"""`python -m tunestation.chat.main JOB.json`: the chat page, or answers on standard output."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tunestation.errors import TunestationError
from tunestation.recipe.base import Part
from tunestation.recipe.schema import Generation

if TYPE_CHECKING:
    from tunestation.chat.engine import Engine


class ChatJob(Part):
    """What the parent asks this process to do."""

    action: Literal["page", "ask"]
    """page: serve the chat page; ask: answer `prompts` and end."""
    model: str
    """The model folder."""
    tokenizer: str | None = None
    """A folder whose tokenizer takes the place of the model's own: the untuned model is asked with the recipe's template."""
    title: str
    """Heading of the page."""
    system: str | None = None
    """System text of every conversation."""
    generation: Generation = Generation()
    """How answers are drawn."""
    examples: tuple[str, ...] = ()
    """Questions offered on the page."""
    port: Annotated[int, Field(ge=1, le=65535)] = 7860
    """Of the page."""
    host: str = "127.0.0.1"
    """The address that the page listens on."""
    prompts: tuple[str, ...] = ()
    """Questions of `ask`."""
    seed: int = 0
    """Of the answers of `ask`."""


def main(arguments: list[str]) -> int:
    """Run the job in the file `arguments[0]`; returns the exit code."""
    job = ChatJob.model_validate_json(Path(arguments[0]).read_text(encoding="utf-8"))
    try:
        _quiet()
        (_page if job.action == "page" else _ask)(job)
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


def _page(job: ChatJob) -> None:
    from tunestation.chat.page import build_page, check_port, serve

    check_port(job.port, job.host)
    page = build_page(_engine(job), job.title, job.system, job.generation, list(job.examples))
    serve(page, job.title, job.host, job.port)


def _ask(job: ChatJob) -> None:
    engine = _engine(job)
    system = [{"role": "system", "content": job.system}] if job.system else []
    for prompt in job.prompts:
        if len(job.prompts) > 1:
            print(f"> {prompt}")
        messages, _ = engine.fit([*system, {"role": "user", "content": prompt}], job.generation.max_new_tokens)
        if _print_growing(engine.reply(messages, job.generation, job.seed)) == "length":
            print(f"note: the answer was cut at {job.generation.max_new_tokens} tokens or the end of the context.", file=sys.stderr)


def _engine(job: ChatJob) -> Engine:
    from tunestation.chat.engine import Engine

    return Engine(Path(job.model), Path(job.tokenizer) if job.tokenizer else None)


def _print_growing(texts: Generator[str, None, str]) -> str:
    """Print the answer as it grows; returns why it ended."""
    shown = ""
    while True:
        try:
            text = next(texts)
        except StopIteration as end:
            print(flush=True)
            return end.value
        print(text[len(shown) :], end="", flush=True)
        shown = text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
