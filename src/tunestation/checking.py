"""What can be wrong with a recipe beyond its schema: names, local data, the model's folder. Needs neither torch nor a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunestation.catalog.models import find
from tunestation.data.conversations import Conversation, Dropped
from tunestation.data.ledger import Ledger
from tunestation.data.parts import columns, generated, missing_columns, outcomes, peek
from tunestation.data.problems import Problems
from tunestation.data.readers import Row, read_rows
from tunestation.data.templates import TEMPLATES
from tunestation.errors import InputError, Problem
from tunestation.export.patterns import bad_patterns
from tunestation.fetching.manifest import data_of, model_of
from tunestation.models.experts import quantise_problem
from tunestation.models.folder import check_model_folder
from tunestation.models.limits import length_problem, limit_of
from tunestation.models.native.family import Limit
from tunestation.models.native.registry import EXPERTS
from tunestation.pipeline.files import read_json
from tunestation.recipe.document import Key
from tunestation.recipe.problems import dotted, suggestion
from tunestation.recipe.schema import TEMPLATE_FILE
from tunestation.recipe.sources import FileSource, FolderModel, GeneratorSource, HubModel, HubSource, StarterModel, UrlSource
from tunestation.stages.fetch import STARTER
from tunestation.stages.inputs import ADAPTER, pin_name
from tunestation.stages.questions import questions_of
from tunestation.training import zero
from tunestation.work import Work


def check_data(work: Work) -> None:
    """Check all that a recipe names on this machine, every local row included. Raises InputError with every problem."""
    problems = [*work.inputs.problems, *_settings(work), *_rows(work), *_questions(work)]
    if problems:
        raise InputError(problems=dict.fromkeys(problems))


def check_settings(work: Work) -> None:
    """The checks that read no rows, made before a run starts. Raises InputError with every problem."""
    problems = list(_settings(work))
    if problems:
        raise InputError(problems=problems)


def not_fetched(work: Work) -> list[str]:
    """The model and data from hubs and the web that are not on this machine yet, in words; they cannot be checked."""
    if work.folder("fetch"):
        return []
    sources = [work.recipe.model.source, *(part.source for part in work.recipe.data.sources)]
    hubs = [pin_name(source) for source in sources if isinstance(source, (HubModel, HubSource))]
    return hubs + [source.url for source in sources if isinstance(source, UrlSource)]


def _settings(work: Work) -> Iterator[Problem]:
    yield from _model(work)
    yield from _adapter(work)
    yield from _length(work)
    yield from _experts(work)
    yield from _template(work)
    yield from _generators(work)
    yield from _batch(work)


def _problem(work: Work, keys: Sequence[Key], what: str, remedy: str = "") -> Problem:
    """A problem of the recipe's field at `keys`."""
    return Problem(f"{dotted(tuple(keys))} {what}", work.loaded.document.where(keys), remedy)


def _model(work: Work) -> Iterator[Problem]:
    source = work.recipe.model.source
    ref = STARTER if isinstance(source, StarterModel) else work.inputs.model_ref if isinstance(source, FolderModel) else None
    if ref:
        for problem in check_model_folder(work.shelf.volumes.path(ref), ref):
            yield _problem(work, ("model", "source"), f"is unusable: {problem.where} {problem.what}", problem.remedy)


def _adapter(work: Work) -> Iterator[Problem]:
    """Whether `train.lora` says of the adapter that training begins with what it is."""
    if work.inputs.adapter is None:
        return
    path = work.shelf.volumes.path(f"{work.inputs.adapter['ref']}/{ADAPTER[0]}")
    try:
        config = read_json(path)
        kind, found, bad = config["peft_type"], {"rank": config["r"], "alpha": config["lora_alpha"]}, bad_patterns(config)
    except (ValueError, KeyError, TypeError):
        kind, found, bad = "nothing that peft wrote", {}, []
    if kind != "LORA":
        yield _problem(work, ("model", "adapter"), f"is no LoRA adapter: {path} describes {kind}.", "Name the folder of a LoRA adapter.")
        return
    for name, value in found.items():
        if (said := getattr(work.recipe.train.lora, name)) != value:
            what = f"is {said:g}, but that of {work.recipe.model.adapter} is {value}."
            yield _problem(work, ("train", "lora", name), what, "Set it to the same.")
    for what in bad:
        yield _problem(work, ("model", "adapter"), f"cannot be used: in {path} {what}.", "Correct it there, or save the adapter again.")


def _length(work: Work) -> Iterator[Problem]:
    """Whether `train.max_tokens` is longer than the model computes rightly, by its configuration here, or by the catalogue."""
    ref = _model_ref(work)
    limit = limit_of(work.shelf.volumes.path(ref)) if ref else _catalogued_limit(work.recipe.model.source)
    if problem := length_problem(limit, work.recipe.train.max_tokens):
        yield _problem(work, ("train", "max_tokens"), problem.what, problem.remedy)


def _experts(work: Work) -> Iterator[Problem]:
    """Whether a 4-bit base is wanted of a mixture of experts."""
    ref, source = _model_ref(work), work.recipe.model.source
    if work.recipe.train.method != "qlora":
        return
    config = work.shelf.volumes.path(ref) / "config.json" if ref else None
    known = find(source.repo) if isinstance(source, HubModel) else None
    kind = read_json(config).get("model_type") if config and config.is_file() else known.shape.family if known else None
    if kind in EXPERTS:
        problem = quantise_problem()
        yield _problem(work, ("train", "method"), problem.what, problem.remedy)


def _model_ref(work: Work) -> str | None:
    """Reference of the model's folder, if it is on this machine."""
    if isinstance(work.recipe.model.source, FolderModel):
        return work.inputs.model_ref
    fetch = work.folder("fetch")
    model = model_of(fetch) if fetch else None
    return model.ref if model else None


def _catalogued_limit(source: object) -> Limit | None:
    known = find(source.repo) if isinstance(source, HubModel) else None
    return Limit(known.limit, "the catalogue knows that longer texts follow rules of the original's own") if known and known.limit else None


def _template(work: Work) -> Iterator[Problem]:
    name, known = work.recipe.template, ["auto", *TEMPLATES]
    if name not in known and not name.endswith(TEMPLATE_FILE):
        yield _problem(work, ("template",), f"'{name}' is not known.", suggestion(name, known))
    if work.inputs.template_text is not None:
        yield from _template_file(work.inputs.template_text, str(work.path.parent / name))


def _template_file(jinja: str, file: str) -> Iterator[Problem]:
    from tunestation.data.rendering import check_compiles

    try:
        check_compiles(jinja, file)
    except InputError as error:
        yield from error.problems


def _generators(work: Work) -> Iterator[Problem]:
    from tunestation.starter.generator import GENERATORS

    places = [(("data", "sources", n, "source"), part.source) for n, part in enumerate(work.recipe.data.sources)]
    places += [(("evaluate", "checks", n, "source"), check.source) for n, check in enumerate(work.recipe.evaluate.checks)]
    for keys, source in places:
        if isinstance(source, GeneratorSource) and source.name not in GENERATORS:
            yield _problem(work, (*keys, "name"), f"'{source.name}' is no generator.", suggestion(source.name, list(GENERATORS)))


def _batch(work: Work) -> Iterator[Problem]:
    """Whether this machine's processes can share a step, and the user's DeepSpeed configuration if they can."""
    runtime, train = work.recipe.runtime, work.recipe.train
    try:
        accumulation = zero.accumulation_steps(train.global_batch_size, runtime.micro_batch_size, work.workers.world)
    except InputError as error:
        problem = error.problems[0]
        yield Problem(problem.what, work.loaded.document.where(("train", "global_batch_size")), problem.remedy)
        return
    if runtime.deepspeed_config:
        made = zero.make(runtime.zero_stage, runtime.offload, runtime.micro_batch_size, accumulation, train.max_grad_norm)
        yield from _deepspeed(work, runtime.deepspeed_config, made)


def _deepspeed(work: Work, name: str, made: dict) -> Iterator[Problem]:
    try:
        zero.merge_users(work.shelf.volumes.path(f"recipe:{name}"), made)
    except InputError as error:
        for problem in error.problems:
            yield _problem(work, ("runtime", "deepspeed_config"), f"({name}): {problem.what}", problem.remedy)


def _rows(work: Work) -> list[Problem]:
    """Every row of every file that is here; too many untrainable ones are told as `prepare` would tell them."""
    ledger, problems, count = Ledger(), [], 0
    for n, _part in enumerate(work.recipe.data.sources):
        for ref in _files(work, n):
            rows, found = _file(work, n, ref, ledger)
            count += rows
            problems += found
    for reason, dropped in ledger.reasons.most_common():
        print(f"{dropped} of {count} rows in files cannot be trained: {reason}")
    everything_here = not work.inputs.problems and not not_fetched(work)
    return problems if problems or not everything_here else _too_many_dropped(work, ledger, count)


def _files(work: Work, n: int) -> list[str]:
    """References of the files of data source `n` that are on this machine, fetched ones included."""
    fetch = work.folder("fetch")
    fetched = data_of(fetch)[n] if fetch else []
    return [file["ref"] for file in (*work.inputs.parts[n]["files"], *fetched)]


def _file(work: Work, n: int, ref: str, ledger: Ledger) -> tuple[int, list[Problem]]:
    """How many rows the file has, and what is wrong with it; the ledger gets the rows that cannot be trained."""
    part, name = work.recipe.data.sources[n], ref.partition(":")[2]
    problems, count = Problems(name), 0
    head, rows = peek(read_rows(work.shelf.volumes.path(ref), name, problems, part.read))
    missing = list(_missing_columns(work, n, head, name))
    if missing:
        return 0, missing
    for outcome in outcomes(rows, part, name, problems, work.recipe.train.objective):
        if isinstance(outcome, Dropped):
            ledger.note(outcome.fate, outcome.where, outcome.reason)
        count += isinstance(outcome, Conversation) or outcome.fate == "dropped"
    return count, list(problems.told())


def _missing_columns(work: Work, n: int, head: Sequence[Row], name: str) -> Iterator[Problem]:
    """Columns that the format reads and no row has, with the field of the recipe that names them, if one does."""
    chosen = work.recipe.data.sources[n].format
    for column in missing_columns(head, chosen):
        fields = [field for field in chosen.model_fields_set if field != "kind" and getattr(chosen, field) == column]
        what = f"names column '{column}'" if fields else f"'{chosen.kind}' reads column '{column}'"
        has = f"{what}, but {name} has: {', '.join(columns(head))}."
        yield _problem(work, ("data", "sources", n, "format", *fields[:1]), has)


def _generated(source: object) -> int:
    """How many rows a generator writes; 0 for any other source, and for a generator that does not exist."""
    if not isinstance(source, GeneratorSource):
        return 0
    try:
        return source.count or len(generated(source.name, source.seed, source.count))
    except InputError:
        return 0


def _too_many_dropped(work: Work, ledger: Ledger, rows: int) -> list[Problem]:
    made = sum(_generated(part.source) for part in work.recipe.data.sources)
    try:
        ledger.check(rows + made, work.recipe.data.max_dropped)
    except InputError as error:
        line = work.loaded.document.where(("data", "max_dropped"))
        return [Problem(problem.what, line if problem.where == "data" else problem.where, problem.remedy) for problem in error.problems]
    return []


def _questions(work: Work) -> Iterator[Problem]:
    """The questions of `evaluate.checks`; missing files and unknown generators are told elsewhere."""
    from tunestation.starter.generator import GENERATORS

    for n, check in enumerate(work.recipe.evaluate.checks):
        source, found = check.source, work.inputs.checks[n]
        here = len(found["files"]) == len(source.paths) if isinstance(source, FileSource) else source.name in GENERATORS
        if here:
            yield from _bad_questions(work, n, check.model_dump() | found)


def _bad_questions(work: Work, n: int, check: dict) -> Iterator[Problem]:
    try:
        questions_of(check, work.shelf.volumes)
    except InputError as error:
        for problem in error.problems:
            of_the_check = problem.where == check["name"]
            yield _problem(work, ("evaluate", "checks", n), problem.what, problem.remedy) if of_the_check else problem
