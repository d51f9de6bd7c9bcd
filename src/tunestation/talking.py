"""Starts the chat page or asks for answers, in a child process that loads the model once."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tunestation.errors import InputError, TunestationError
from tunestation.fetching.manifest import model_of
from tunestation.pipeline.files import write_json
from tunestation.pipeline.process import child_variables
from tunestation.settings import child_environment
from tunestation.work import Work


def page(work: Work, port: int, base: bool) -> None:
    """Serve the chat page until it is stopped."""
    title = work.recipe.chat.title or work.recipe.name
    job = {"action": "page", "title": f"{title} (untuned)" if base else title, "port": port, "host": work.settings.listen}
    _talk(work, base, job)


def answers(work: Work, prompt: str, base: bool) -> None:
    """Print the greedy answer to `prompt`, or to each line of `@file`."""
    _talk(work, base, {"action": "ask", "title": work.recipe.name, "prompts": _prompts(prompt), "temperature": 0.0})


def _prompts(prompt: str) -> list[str]:
    if not prompt.startswith("@"):
        return [prompt]
    path = Path(prompt[1:])
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the prompts cannot be read: {error}", str(path), "Give a UTF-8 file with one prompt a line.") from None
    if not lines:
        raise InputError("holds no prompts.", str(path), "Give a UTF-8 file with one prompt a line.")
    return lines


def _talk(work: Work, base: bool, job: dict) -> None:
    chat = work.recipe.chat
    generation = chat.generation.model_dump() | ({"temperature": job.pop("temperature")} if "temperature" in job else {})
    job |= {"model": str(_model(work, base)), "tokenizer": str(_tokenizer(work)), "system": chat.system, "generation": generation}
    path = work.shelf.folder / "logs" / f"chat-{job['action']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, job | {"examples": list(work.recipe.evaluate.prompts)})
    environment = child_environment(child_variables(work.settings.cache, offline=True))
    code = _wait(subprocess.Popen([sys.executable, "-m", "tunestation.chat.main", str(path)], env=environment))
    if code:
        # the child has said on the terminal what was wrong
        raise (InputError if code == 2 else TunestationError)("chat ended with an error (see above).")


def _wait(child: subprocess.Popen) -> int:
    """Both Ctrl-C and SIGTERM end the child in good order; a terminal's Ctrl-C reaches it by itself as well."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: child.terminate())
    return child.wait()


def _model(work: Work, base: bool) -> Path:
    merged = work.folder("merge")
    if merged is None:
        name = work.recipe.name
        raise InputError(f"'{name}' has no finished model with these settings yet.", remedy=f"Run 'invoke reproduce {name}' first.")
    if not base:
        return merged
    model = model_of(work.folder("fetch"))
    if model is None:
        raise InputError(f"'{work.recipe.name}' starts from new weights: there is no untuned model.", remedy="Ask without --base.")
    return work.shelf.volumes.path(model.ref)


def _tokenizer(work: Work) -> Path:
    """The tokenizer with the recipe's template, the same for the tuned and the untuned model."""
    return work.folder("prepare") / "tokenizer"
