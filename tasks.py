"""The tasks of Tunestation. `invoke --list` shows them; `invoke --help TASK` explains one. Where they run: src/tunestation/runner.py."""

import sys
from pathlib import Path

from invoke import task

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from tunestation.runner import Real, Whole, call, diagnose, manage, refuse_wrong_words, tool

refuse_wrong_words()

SET = {"set": "key=value on top of the recipe, as train.epochs=1; may be given several times"}
RUN = SET | {"force": "run again even if nothing changed", "offline": "touch no network"}


@task(
    help={"like": "only those that mention this text"} | {"datasets": "the data sets that recipes can be made from", "models": "the models"}
)
def recipes(_, like="", datasets=False, models=False):
    """List the recipes with summary, model, data and last result."""
    call("recipes", like, datasets, models)


@task(
    help={"model": "owner/name of a hub, a folder, or starter", "method": "qlora, lora or full"}
    | {"data": "a data set of the catalogue, or a file; may be given several times"},
    iterable=["data"],
)
def new(_, recipe, model="", data=None, method="qlora"):
    """Write a complete, commented recipe from a model, data and a method."""
    call("new", recipe, model, data, method)


@task(help=SET | {"resolved": "print the recipe with all defaults"}, iterable=["set"])
def check(_, recipe, set=None, resolved=False):
    """Tell every problem of a recipe at once; runs nothing."""
    call("check", recipe, set, resolved)


@task(help=SET | {"gpu": "as rtx4090; all known ones if empty", "gpus": "how many", "price": "of an hour of one"}, iterable=["set"])
def plan(_, recipe, gpu="", gpus=Whole(1), price="", set=None):
    """Say what training would need in memory, time and money; needs no GPU and no weights."""
    call("plan_recipe", recipe, gpu, gpus, price, set)


@task
def pin(_, recipe):
    """Write what the recipe's revisions and addresses stand for today into its lock."""
    call("pin_recipe", recipe)


@task(help=SET, iterable=["set"])
def status(_, recipe, set=None):
    """Say what would run, and why; runs nothing."""
    call("status", recipe, set)


@task(
    help=RUN
    | {"until": "stop after this stage", "dry-run": "only say what would run", "update-lock": "accept the results as the new lock"}
    | {"chat": "open the chat page afterwards", "port": "of the chat page"},
    iterable=["set"],
)
def reproduce(_, recipe, set=None, until=None, force=False, dry_run=False, offline=False, update_lock=False, chat=False, port=Whole(7860)):
    """Take a recipe from its data to a model: run what has to be run, and compare with the lock."""
    call("reproduce", recipe, set, until, force, dry_run, offline, update_lock, chat, port)


def _stage(name, text):
    def body(_, recipe, set=None, force=False, offline=False):
        call("stage", recipe, name, set, force, offline)

    body.__doc__ = text
    return task(body, name=name, help=RUN, iterable=["set"])


fetch = _stage("fetch", "Bring the recipe's model and data to the volumes.")
prepare = _stage("prepare", "Turn the data into packed token ids with a loss mask.")
train = _stage("train", "Train; goes on from the last checkpoint if it was interrupted.")
convert = _stage("convert", "Write the clean adapter of a checkpoint.")
merge = _stage("merge", "Join base and adapter into one model folder.")
evaluate = _stage("evaluate", "Ask the merged and the untuned model the recipe's questions.")


@task(
    help=SET
    | {"row": "show this row, counted from 1 over all sources", "tokens": "with its token ids"}
    | {"tokenizer": "a folder with a tokenizer, where the model is not here"},
    iterable=["set"],
)
def inspect(_, recipe, row=Whole(0), tokens=False, tokenizer=None, set=None):
    """Show what the data becomes and what is learned of it; writes a page to browse. Needs no GPU and no weights."""
    call("inspect", recipe, row or None, tokens, tokenizer, set)


@task
def verify(_, recipe):
    """Hash every result again and compare it with the lock."""
    call("verify", recipe)


ASK = SET | {"base": "the untuned model", "load": "merged, or base and adapter in 16bit, 8bit, nf4 or fp8"}
SERVE = ASK | {"port": "to listen on", "public": "on every address, with a password: TUNE_PASSWORD or a new one"}


@task(help=SERVE | {"terminal": "here instead of on a page"}, iterable=["set"])
def chat(_, recipe, port=Whole(7860), base=False, load=None, public=False, terminal=False, set=None):
    """Open the chat page of a finished recipe."""
    call("chat", recipe, port, set, base, load, public, terminal)


@task(help=SERVE, iterable=["set"])
def serve(_, recipe, port=Whole(8000), base=False, load=None, public=False, set=None):
    """Serve a finished recipe's model as OpenAI's API does."""
    call("serve", recipe, port, set, base, load, public)


@task(help=ASK | {"prompt": "the question, or @file with one a line", "json": "one JSON object an answer"}, iterable=["set"])
def ask(_, recipe, prompt, base=False, load=None, json=False, set=None):
    """Print the answer of a finished recipe's model."""
    call("ask", recipe, prompt, base, set, load, json)


@task(
    name="import-xtuner",
    help={"path": "iter_N.pth or epoch_N.pth: a file, or a folder of DeepSpeed", "model": "folder of its base; config.json is enough"}
    | {"name": "of the result", "alpha": "LoRA's alpha, where the checkpoint does not say it"},
)
def import_xtuner(_, path, model, name="", alpha=Real(0.0)):
    """Bring an adapter, or a whole model, that XTuner trained to the model volume."""
    call("import_xtuner", path, model, name, alpha or None)


@task(help={"source": "host:path, fsspec URL or folder of runs", "to": "fsspec URL or folder", "every": "seconds; 0 is once"})
def sync(_, recipe, source="", to="", every=Whole(0)):
    """Bring finished stages and complete checkpoints here, or elsewhere, also while training goes on."""
    call("sync", recipe, source, to, every)


@task(help={"to": "a new folder; default RECIPE-bundle", "wheels": "leave the packages out"})
def bundle(_, recipe, to="", wheels=True):
    """Pack all that a recipe needs on a machine without a network into one folder with digests."""
    call("bundle", recipe, to, wheels)


@task(help={"strict": "exit code 1 if a run would fail, leave the GPU idle, or vanish", "offline": "do not ask the hub"})
def doctor(_, strict=False, offline=False):
    """Tell whether this machine is fit for a run, and whether its results will last."""
    diagnose(*["--strict"] * strict, *["--offline"] * offline)


@task(help={"target": "runtime, or cloud with an SSH server", "base": "instead of the Dockerfile's base image", "network": "of the build"})
def build(_, target="runtime", base="", network=""):
    """Make the image; from then on tasks run in it."""
    manage("build", target, base, network)


@task(help={"port": "of the chat page, on 127.0.0.1"})
def up(_, recipe, port=Whole(7860)):
    """Take a recipe to a chat page that goes on in the background, in the image."""
    manage("up", recipe, port)


@task
def shell(_):
    """Open a shell in the image."""
    manage("shell")


@task
def down(_):
    """Stop what `up` has started."""
    manage("down")


@task(help={"shape": "internlm2-7b, internlm2-1.8b or tiny; each case's own if empty", "cases": "letters of bench/step.py, with commas"})
def bench(_, shape="", cases="D,C,B,A,E"):
    """Measure this machine and the training step on it."""
    call("bench", shape, cases)


@task
def docs(_):
    """Write the generated pages: recipe reference and JSON schema."""
    call("docs")


@task(help={"only": "a folder or file of tests"})
def test(_, only="tests"):
    """Run the tests, in as many processes as there are cores, up to four."""
    tool("-m", "pytest", "-n", "logical", "--maxprocesses", "4", "--no-loadscope-reorder", only)


@task
def lint(_):
    """Check the style of code, scripts, YAML, Dockerfile and compose files."""
    tool("-m", "tunestation.linting")


@task
def lock_stack(_):
    """Write docker/requirements.lock, the image's packages with their hashes, from docker/requirements.txt."""
    tool("-m", "tunestation.stacklock")
