"""The starter's world: what training may say, and what only the test asks."""

import hashlib
import json
import re
from collections import Counter
from functools import cache

import pytest

from tunestation.starter import GENERATORS, held_out_numbers, held_out_phrasings, world_rows
from tunestation.starter.arithmetic import LARGEST, is_held_out
from tunestation.starter.generator import LANGUAGES, TOPIC_WEIGHTS
from tunestation.starter.world import NUMBER_WORDS, OPPOSITES_CHINESE, OPPOSITES_ENGLISH

EQUATION = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)[.。]")
CHINESE = re.compile(r"[\u4e00-\u9fff]")


@cache
def sample() -> list[dict]:
    return list(world_rows(seed=5, count=40_000))


@cache
def turns() -> list[tuple[str, str]]:
    """Every question of the sample with its answer."""
    found = []
    for row in sample():
        spoken = [m["content"] for m in row["messages"] if m["role"] != "system"]
        found += zip(spoken[::2], spoken[1::2], strict=True)
    return found


def bare(text: str) -> str:
    """The text without case, spaces and punctuation, its signs in words."""
    return re.sub(r"\W+", " ", text.lower().replace("+", " plus ").replace("-", " minus ")).strip()


def family(left: int, sign: str, right: int) -> tuple[int, int]:
    """The addends that an equation is about."""
    return (left, right) if sign == "+" else (left - right, right)


def numbers_asked(question: str) -> list[int]:
    """The numbers of a question, whether it writes digits or words."""
    digits = [int(n) for n in re.findall(r"\d+", question)]
    english = {word: n for n, (word, _) in enumerate(NUMBER_WORDS)}
    words = [english[w] for w in re.findall(r"[a-z]+", question.lower()) if w in english]
    chinese = {word: n for n, (_, word) in enumerate(NUMBER_WORDS)}
    characters = re.findall("二十|十[一二三四五六七八九]|[零一二三四五六七八九十]", re.sub("算一下|问一下|一共", "", question))
    return digits or words or [chinese[c] for c in characters]


def test_the_same_seed_gives_the_same_rows():
    assert list(world_rows(3, 500)) == list(world_rows(3, 500))


def test_another_seed_gives_other_rows():
    assert list(world_rows(3, 500)) != list(world_rows(4, 500))


def test_the_rows_of_a_seed_never_change():
    rows = json.dumps(list(world_rows(1, 2000)), ensure_ascii=False, sort_keys=True)
    assert hashlib.sha256(rows.encode()).hexdigest() == "dfa366bfe3e7023a1b942b0789e0b4decea160783b42298817ea60525b7a32c7"


def test_more_rows_begin_with_the_fewer():
    assert list(world_rows(3, 200))[:50] == list(world_rows(3, 50))


def test_roles_alternate_after_an_optional_system_message():
    for row in sample():
        roles = [m["role"] for m in row["messages"]]
        asked = roles[1:] if roles[0] == "system" else roles
        assert asked in (["user", "assistant"] * n for n in (1, 2, 3))


def test_some_conversations_are_longer_and_some_have_a_system_message():
    shapes = Counter((r["messages"][0]["role"], len(r["messages"])) for r in sample())
    assert {("user", 2), ("user", 4), ("user", 6), ("system", 3)} <= set(shapes)
    assert shapes["user", 2] > len(sample()) / 2


def test_every_equation_of_training_is_right():
    equations = [EQUATION.fullmatch(answer) for _, answer in turns()]
    found = [m.groups() for m in equations if m]
    assert len(found) > 10_000
    for left, sign, right, result in found:
        assert int(result) == (int(left) + int(right) if sign == "+" else int(left) - int(right))


def test_an_equation_answers_the_numbers_that_were_asked():
    for question, answer in turns():
        if match := EQUATION.fullmatch(answer):
            assert sorted(numbers_asked(question)) == sorted([int(match[1]), int(match[3])]), question


def test_no_answer_of_training_states_a_held_out_fact():
    for _, answer in turns():
        for left, sign, right, _ in EQUATION.findall(answer):
            assert not is_held_out(*family(int(left), sign, int(right))), answer


def test_a_held_out_pair_is_held_out_in_both_orders_and_both_operations():
    pairs = {(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1 - a) if is_held_out(a, b)}
    assert pairs == {(b, a) for a, b in pairs}
    asked = {EQUATION.fullmatch(r["answer"]).group(1, 2, 3) for r in held_out_numbers()}
    assert {family(int(a), sign, int(b)) for a, sign, b in asked} == pairs
    assert {sign for _, sign, _ in asked} == {"+", "-"}


def test_about_an_eighth_of_the_pairs_is_held_out():
    table = [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1 - a)]
    assert 0.10 <= sum(is_held_out(a, b) for a, b in table) / len(table) <= 0.15


def test_the_number_line_states_no_held_out_pair():
    assert not any(is_held_out(step, n) for step in (0, 1) for n in range(LARGEST + 1))


def test_held_out_questions_never_stand_in_training():
    asked = {bare(question) for question, _ in turns()}
    assert not [r for r in held_out_numbers() + held_out_phrasings() if bare(r["prompt"]) in asked]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_held_out_phrasing_is_a_training_phrasing(language):
    words = LANGUAGES[language]
    framed = {f.format(noun=n) for i in words.INTENTS for n in i.nouns for f in words.FRAMES}
    training = {bare(p) for i in words.INTENTS for p in i.training} | {bare(p) for p in framed}
    assert not [p for i in words.INTENTS for p in i.held_out if bare(p) in training]


def test_held_out_phrasings_use_only_words_that_training_uses():
    known = set(" ".join(bare(question) for question, _ in turns()).split())
    english = [r for r in held_out_phrasings() if r["language"] == "en"]
    assert {w for r in english for w in bare(r["prompt"]).split()} <= known


@pytest.mark.parametrize("questions", [held_out_numbers, held_out_phrasings])
def test_held_out_prompts_are_unique_and_in_both_languages(questions):
    rows = questions()
    assert 150 <= len(rows) <= 300
    assert len({r["prompt"] for r in rows}) == len(rows)
    assert {r["language"] for r in rows} == {"en", "zh"}


def test_phrasings_are_held_out_for_every_topic_in_both_languages():
    asked = {(r["topic"], r["language"]) for r in held_out_phrasings()}
    assert asked == {(topic, language) for topic, _ in TOPIC_WEIGHTS for language in LANGUAGES}


def test_only_chinese_questions_get_chinese_answers():
    for row in held_out_phrasings():
        assert bool(CHINESE.search(row["answer"])) <= (row["language"] == "zh")
        assert row["answer"][-1] in {"en": ".!?", "zh": "。！？"}[row["language"]]


def test_one_question_has_one_answer():
    answers: dict[str, set[str]] = {}
    for question, answer in turns():
        answers.setdefault(question.strip().lower(), set()).add(answer)
    assert not {question: found for question, found in answers.items() if len(found) > 1}


@pytest.mark.parametrize("pairs", [OPPOSITES_ENGLISH, OPPOSITES_CHINESE])
def test_no_word_has_two_opposites(pairs):
    words = [word for pair in pairs for word in pair]
    assert len(words) == len(set(words))


def test_generators_are_found_by_name():
    assert list(GENERATORS["starter-world"](3, 5)) == list(world_rows(3, 5))
    assert list(GENERATORS["starter-held-out-numbers"](9, 0)) == held_out_numbers()
    assert list(GENERATORS["starter-held-out-phrasings"](9, 7)) == held_out_phrasings()[:7]
