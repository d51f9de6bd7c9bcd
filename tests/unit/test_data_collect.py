"""The sources of a recipe as one stream: every row comes out once, with its copies, its reason, or as a problem of its file."""

import json

import pytest

from tunestation.data.conversations import Conversation, Dropped
from tunestation.data.parts import PartFiles, collect
from tunestation.errors import InputError
from tunestation.pipeline.digest import file_digest
from tunestation.pipeline.volumes import Volumes


@pytest.fixture
def gather(tmp_path):
    """Writes each file's rows beside the recipe and collects sources that read one of them each."""

    def run(*sources: tuple[list, dict], seed: int = 1, objective: str = "sft") -> list[Conversation | Dropped]:
        parts = []
        for number, (rows, fields) in enumerate(sources):
            name = f"part{number}.jsonl"
            (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
            given = {"files": [{"ref": f"recipe:{name}"}], "format": {"kind": "auto"}} | fields
            parts.append(PartFiles.model_validate_json(json.dumps(given)))
        volumes = Volumes(tmp_path, tmp_path, tmp_path, tmp_path)
        return list(collect(parts, [() for _ in parts], volumes, seed, objective))

    return run


def questions(count: int) -> list[dict]:
    return [{"q": f"question {number}", "a": f"answer {number}"} for number in range(count)]


def test_every_row_comes_out_in_order_with_its_place(gather):
    found = gather((questions(3), {}), ([{"q": "?", "a": ""}, *questions(1)], {"repeat": 2}))
    assert [one.where for one in found] == ["part0.jsonl:1", "part0.jsonl:2", "part0.jsonl:3", "part1.jsonl:1", "part1.jsonl:2"]
    assert [getattr(one, "reason", None) or one.copies for one in found] == [1, 1, 1, "empty answer", 2]


def test_rows_beyond_a_limit_are_left_out_by_name(gather):
    first, again, other = (gather((questions(20), {"limit": 5}), seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    left = [one for one in first if isinstance(one, Dropped)]
    assert len(first) == 20 and len(left) == 15
    assert {(one.fate, one.reason) for one in left} == {("left out", "not among the rows that the source's limit takes")}


def test_weights_are_shares_of_what_is_seen(gather):
    found = gather((questions(30), {"weight": 3}), (questions(4), {"weight": 1}))
    assert [one.copies for one in found[:30]] == [1] * 30
    assert sum(one.copies for one in found[30:]) == 10


def test_documents_are_read_for_pretraining(gather):
    (found,) = gather(([{"text": "Once upon a time."}], {}), objective="pretrain")
    assert (found.text, found.messages) == ("Once upon a time.", ())


def test_the_problems_of_all_files_are_told_when_all_have_been_read(gather):
    with pytest.raises(InputError) as caught:
        gather(([{"q": 1, "a": "x"}], {}), ([], {}), ([{"x": 1}], {}))
    assert [str(problem).split(":")[0] for problem in caught.value.problems] == ["part0.jsonl", "part1.jsonl", "part2.jsonl"]


def test_a_file_that_changed_since_its_digest_was_taken_is_told(gather, tmp_path):
    (tmp_path / "other").write_text("x")
    files = [{"ref": "recipe:part0.jsonl", "sha256": file_digest(tmp_path / "other")}]
    with pytest.raises(InputError, match="the file changed while the recipe was running"):
        gather((questions(1), {"files": files}))
