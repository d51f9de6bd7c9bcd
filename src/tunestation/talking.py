"""Starts the chat page, the API, the terminal or `ask`: a child process that loads the model once."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tunestation.chat.weights import PRECISIONS, Weights
from tunestation.errors import InputError, TunestationError
from tunestation.fetching.manifest import model_of
from tunestation.pipeline.files import write_json
from tunestation.pipeline.process import child_variables
from tunestation.settings import child_environment
from tunestation.work import Work

MERGED = "merged"


def page(work: Work, port: int, base: bool, load: str | None, public: bool, terminal: bool) -> None:
    """Serve the chat page, or talk in the terminal, until it is stopped. The page loads an adapter apart from its base, to compare."""
    title = work.recipe.chat.title or work.recipe.name
    title = f"{title} (untuned)" if base else title
    job = {"action": "terminal" if terminal else "page", "title": title, "port": valid_port(port), "public": public}
    usual = MERGED if terminal or not _adapter(work) else "16bit"
    _talk(work, weights(work, base, load or usual), job)


def serve(work: Work, port: int, base: bool, load: str | None, public: bool) -> None:
    """Serve the API until it is stopped."""
    job = {"action": "serve", "title": work.recipe.name, "port": valid_port(port), "public": public}
    _talk(work, weights(work, base, load or MERGED), job)


def answers(work: Work, prompt: str, base: bool, load: str | None, as_json: bool) -> None:
    """Print the greedy answer to `prompt`, or to each line of `@file`."""
    job = {"action": "ask", "title": work.recipe.name, "prompts": _prompts(prompt), "as_json": as_json}
    greedy = work.recipe.chat.generation.model_copy(update={"temperature": 0.0})
    _talk(work, weights(work, base, load or MERGED), job | {"generation": greedy.model_dump()})


def weights(work: Work, base: bool, load: str) -> Weights:
    """What to load: the merged folder, the untuned model, or base and adapter. Raises InputError for what is not there."""
    known = [MERGED, *PRECISIONS]
    if load not in known:
        raise InputError(f"'{load}' is not known.", "--load", f"Choose from: {', '.join(known)}.")
    merged, prepared = _result(work, "merge"), _result(work, "prepare")
    probe = str(prepared / "probe.json")
    if load == MERGED and not base:
        return Weights(model=str(merged), probe=probe)
    adapter = None if base else _adapter(work)
    if not base and adapter is None:
        raise InputError(f"'{work.recipe.name}' trained all weights: there is no adapter.", "--load", "Leave --load out.")
    return Weights(
        model=str(_base(work)),
        adapter=str(adapter) if adapter else None,
        tokenizer=str(prepared / "tokenizer"),  # with the recipe's template, the same for the tuned and the untuned model
        probe=probe,
        precision="16bit" if load == MERGED else load,
        double_quant=work.recipe.train.base.double_quant,
    )


def valid_port(port: int) -> int:
    """`port`, if there is such a one. Raises InputError otherwise."""
    if not 0 < port < 65536:
        raise InputError(f"there is no port {port}.", "--port", "Give one from 1 to 65535.")
    return port


def _result(work: Work, stage: str) -> Path:
    found = work.folder(stage)
    if found is None:
        what = f"'{work.recipe.name}' has no finished model with these settings yet."
        raise InputError(what, remedy=f"Run '{work.command('reproduce')}' first.")
    return found


def _adapter(work: Work) -> Path | None:
    found = _result(work, "convert")
    return found if (found / "adapter_config.json").is_file() else None


def _base(work: Work) -> Path:
    model = model_of(_result(work, "fetch"))
    if not model:
        raise InputError(f"'{work.recipe.name}' starts from new weights: there is no untuned model.", remedy="Leave --base out.")
    return work.shelf.volumes.path(model.ref)


def _prompts(prompt: str) -> list[str]:
    if not prompt.startswith("@"):
        return [prompt]
    path = Path(prompt[1:])
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else f"byte {error.start} is no UTF-8"
        raise InputError(f"the prompts cannot be read: {why}.", str(path), "Give a UTF-8 file with one prompt a line.") from None
    if not lines:
        raise InputError("holds no prompts.", str(path), "Give a UTF-8 file with one prompt a line.")
    return lines


def _talk(work: Work, found: Weights, job: dict) -> None:
    chat, folder = work.recipe.chat, work.shelf.folder / "chat"
    known = {"name": work.recipe.name, "weights": found.model_dump(), "folder": str(folder), "system": chat.system}
    known |= {"host": work.settings.listen, "generation": chat.generation.model_dump(), "examples": list(work.recipe.evaluate.prompts)}
    path = work.shelf.folder / "logs" / f"chat-{job['action']}.json"
    for parent in (path.parent, folder):
        parent.mkdir(parents=True, exist_ok=True)
    write_json(path, known | job)
    environment = child_environment(child_variables(work.settings.cache, offline=True))
    command = [sys.executable, "-m", "tunestation.chat.main", str(path)]
    code, stopped = _run(command, environment, interrupts=job["action"] != "terminal")
    if stopped and job["action"] == "ask":
        raise KeyboardInterrupt  # its answers are not whole
    if code and not stopped:
        # the child has said on the terminal what was wrong
        raise (InputError if code == 2 else TunestationError)(f"{job['action']} ended with an error (see above).")


def _run(command: list[str], environment: dict[str, str], interrupts: bool) -> tuple[int, bool]:
    """(exit code, whether a signal has stopped it), also one that came before the child was ready.

    Ctrl-C and SIGTERM end the child in good order; in a terminal conversation Ctrl-C only stops an answer, which the child does.
    """
    started: list[subprocess.Popen] = []
    stopped: list[int] = []  # no Event, whose set() another signal may interrupt and then wait for

    def stop(number: int, _frame: object) -> None:
        stopped.append(number)
        for child in started:
            child.terminate()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop if interrupts else lambda *_: None)
    with subprocess.Popen(command, env=environment) as child:
        started.append(child)
        if stopped:
            child.terminate()
        return child.wait(), bool(stopped)
