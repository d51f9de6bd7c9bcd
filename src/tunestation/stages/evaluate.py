"""evaluate: asks the merged model, and the untuned one, questions with known answers."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tunestation.chat.generate import batch_answers
from tunestation.errors import Problem, TunestationError
from tunestation.fetching.manifest import model_of
from tunestation.pipeline.files import write_json
from tunestation.pipeline.job import Job, Result
from tunestation.stages.questions import Question, questions_of
from tunestation.training.model import device, load_tokenizer

MAX_NEW_TOKENS = 64


def run(params: dict, job: Job) -> Result:
    """Write answers.json; metrics are the accuracies `<check>` and, where the recipe compares, `<check>_base`."""
    asked = {check["name"]: questions_of(check, job.volumes) for check in params["checks"]}
    tuned = _ask(job.needs["merge"], job, asked)
    base = _base_folder(job)
    untuned = _ask(base, job, asked) if base else {}
    answers = [_row(name, question, tuned, untuned) for name, questions in asked.items() for question in questions]
    kept = Path(job.machine["logs"]) / "answers.json"  # stays when a check fails and nothing is published
    for path in (job.output / "answers.json", kept):
        write_json(path, answers)
    metrics, failures = {}, []
    for check in params["checks"]:
        failures += _judge(check, asked[check["name"]], tuned, untuned, metrics, kept)
    if failures:
        raise TunestationError(problems=failures)
    return Result(facts={name: len(questions) for name, questions in asked.items()}, metrics=metrics, observed=_by_topic(asked, tuned))


Answers = dict[str, dict[str, str]]
"""Check name -> prompt -> answer."""


def _ask(folder: Path, job: Job, asked: dict[str, list[Question]]) -> Answers:
    """Greedy answers of the model in `folder`, with the tokenizer and template of the recipe."""
    tokenizer = load_tokenizer(job.needs["prepare"] / "tokenizer")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True, use_safetensors=True).to(device())
    found: Answers = {}
    for name, questions in asked.items():
        talks = [[{"role": "user", "content": question.prompt}] for question in questions]
        answers = batch_answers(model, tokenizer, talks, MAX_NEW_TOKENS)
        found[name] = {question.prompt: answer for question, answer in zip(questions, answers, strict=True)}
    return found


def _base_folder(job: Job) -> Path | None:
    model = model_of(job.needs["fetch"])
    return job.volumes.path(model.ref) if model else None


def _share(questions: list[Question], answers: dict[str, str]) -> float:
    return round(sum(question.right(answers[question.prompt]) for question in questions) / len(questions), 4)


def _judge(check: dict, questions: list[Question], tuned: Answers, untuned: Answers, metrics: dict, kept: Path) -> list[Problem]:
    name = check["name"]
    share = metrics[name] = _share(questions, tuned[name])
    wanted, line = check["at_least"], f"  {name}: {share:.1%} right of {len(questions)}"
    if untuned:
        before = metrics[f"{name}_base"] = _share(questions, untuned[name])
        wanted, line = max(wanted, check["at_least_of_base"] * before), f"{line}; untuned {before:.1%}"
    print(line, flush=True)
    if share >= wanted:
        return []
    remedy = f"Every answer is in {kept}. Train longer, or lower the demand in evaluate.checks."
    return [Problem(f"{name}: {share:.1%} of the answers are right, at least {wanted:.1%} are demanded.", remedy=remedy)]


def _row(name: str, question: Question, tuned: Answers, untuned: Answers) -> dict:
    answer = tuned[name][question.prompt]
    row = {"check": name, "prompt": question.prompt, "wanted": question.wanted, "answer": answer, "right": question.right(answer)}
    return row | ({"untuned": untuned[name][question.prompt]} if untuned else {})


def _by_topic(asked: dict[str, list[Question]], tuned: Answers) -> dict:
    """Share of right answers by topic and language, where the questions name them."""
    groups: dict[str, list[bool]] = {}
    for name, questions in asked.items():
        for question in questions:
            groups.setdefault(f"{name}: {question.group}", []).append(question.right(tuned[name][question.prompt]))
    return {"by_topic": {group: f"{sum(right)}/{len(right)}" for group, right in sorted(groups.items())}}
