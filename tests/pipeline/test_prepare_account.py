"""The account of every row, and what stops the stage before a GPU minute is spent."""

import json
import tempfile
from pathlib import Path

from datasets import load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from preparing import Bench, answers, numbers
from test_control_tokens import metaspace

from tunestation.data.encoding import IGNORE
from tunestation.data.ledger import read_ledger
from tunestation.data.tokenizers import load_tokenizer


def test_a_column_that_is_empty_in_every_row_is_told_as_such(bench):
    words = bench.error(bench.rows("n.jsonl", [{"q": f"Who knows {n}?", "a": None} for n in range(60)]), max_dropped=1.0)
    assert "n.jsonl: the column 'a' is empty in every row. Name the column that holds the text, or mend the file." in words


def test_answers_that_were_all_cut_before_their_stop_token_fail(bench):
    rows = bench.rows("n.jsonl", [{"q": "Count.", "a": f"{n} one two three " * 30} for n in range(4)])
    words = bench.error(rows, max_dropped=1.0)
    assert "the stop token <|im_end|> is in no label: every answer was cut before its end" in words
    assert "Raise train.max_tokens (the longest row has" in words


def test_documents_are_split_at_the_limit_and_no_token_of_them_is_lost(bench):
    texts = ["one two three four five six " * 30, "short", "<|im_end|> typed"]
    rows = bench.rows("t.jsonl", [{"text": text} for text in texts]) | {"format": {"kind": "text"}}
    facts, output = bench.run(rows, objective="pretrain", template="auto", held_out_fraction=0.0)
    tokenizer, data = load_tokenizer(output / "tokenizer", "t"), load_from_disk(str(output / "train"))
    lines = list(read_ledger(output / "rows.jsonl.zst"))
    assert [line["fate"] for line in lines] == ["split", "kept", "kept"] and lines[0]["documents"] > 1
    assert sum(map(len, data["input_ids"])) == facts["tokens"] == sum(line["tokens"] for line in lines)
    learned = tokenizer.decode([label for row in data for label in row["labels"] if label != IGNORE])
    assert all(text in learned for text in texts[1:]) and learned.count("one two three four five six ") >= 25
    assert facts["labelled_tokens"] == facts["tokens"]
    assert json.loads((output / "probe.json").read_text()) == {}


def test_train_on_last_learns_one_answer_of_each_conversation(bench):
    talk = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "first"), ("user", "c"), ("assistant", "last"))]
    rows = bench.rows("m.jsonl", [{"messages": talk}] * 2) | {"format": {"kind": "messages"}}
    _, output = bench.run(rows, train_on="last")
    assert answers(output / "train", output) == ["last", "last"]


def test_what_did_not_go_through_as_it_was_is_a_warning_for_the_closing_table(bench, capsys):
    rows = [*numbers(20), numbers(1)[0], {"q": "Count.", "a": "one two three " * 40}, {"q": "Who?", "a": ""}]
    bench.run(bench.rows("n.jsonl", rows), max_dropped=0.1)
    said = capsys.readouterr().out
    assert "warning: 1 row of 23 dropped: 1 empty answer" in said
    assert "warning: 1 row cut at 64 tokens: " in said and "warning: 1 row equal to an earlier row" in said


def test_what_format_auto_recognised_is_said_once_however_often_the_rows_are_read(bench, capsys):
    rows = bench.rows("n.jsonl", [{"question": row["q"], "answer": row["a"]} for row in numbers(10)]) | {"format": {"kind": "auto"}}
    bench.run(rows)  # a tokenizer is trained on them first
    assert capsys.readouterr().out.count("n.jsonl: read as columns (question, answer).\n") == 1


def test_a_named_template_that_is_encoded_otherwise_as_a_whole_is_told(bench, capsys):
    metaspace("first").save_pretrained(bench.root / "models/tiny")
    _, output = bench.run(bench.rows("n.jsonl", numbers(3)), template="vicuna", model="models:tiny")
    assert not any(found["same_as_chat_template"] for found in json.loads((output / "probe.json").read_text()).values())
    assert "warning: other programs will tokenise this model's chats a little differently" in capsys.readouterr().out
    bench.run(bench.rows("n.jsonl", numbers(3)), template="chatml")
    assert "other programs" not in capsys.readouterr().out


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 120), min_size=1, max_size=40), st.booleans(), st.sampled_from([0.0, 0.3]))
def test_packed_tokens_are_the_prepared_tokens(lengths, packing, fraction):
    with tempfile.TemporaryDirectory() as root:
        bench = Bench(Path(root))
        rows = [{"q": f"{n}?", "a": "one " * length} for n, length in enumerate([*lengths, 1])]
        facts, output = bench.run(bench.rows("n.jsonl", rows), packing=packing, held_out_fraction=fraction, max_tokens=80)
        lines = list(read_ledger(output / "rows.jsonl.zst"))
        written = sum(len(ids) for side in ("train", "held_out") for ids in load_from_disk(str(output / side))["input_ids"])
        assert written == facts["tokens"] + facts["held_out_tokens"] == sum(min(80, line["tokens"]) for line in lines)
        assert sum(line.get("lost", 0) for line in lines) == facts["lost_tokens"] == sum(max(0, line["tokens"] - 80) for line in lines)


def test_rows_that_are_equal_are_told_and_stay_together(bench):
    facts, output = bench.run(bench.rows("n.jsonl", [*numbers(12), *numbers(6)]), held_out_fraction=0.5)
    trained, held_out = answers(output / "train", output), answers(output / "held_out", output)
    assert facts["duplicates"] == 6 and not set(trained) & set(held_out)
    assert [line.get("same_as") for line in read_ledger(output / "rows.jsonl.zst")][12:] == [1, 2, 3, 4, 5, 6]


def test_a_template_file_is_used_and_one_that_fails_is_told(bench):
    rows = bench.rows("n.jsonl", numbers(3))
    own = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    own += "{% if add_generation_prompt %}{{ '<|im_start|>assistant: ' }}{% endif %}"
    _, output = bench.run(rows, template="own.jinja", template_text=own)
    written = load_tokenizer(output / "tokenizer", "t").decode(load_from_disk(str(output / "train"))[0]["input_ids"])
    assert "<|im_start|>user: What comes after 0?<|im_end|><|im_start|>assistant: It is 1, one.<|im_end|>" in written
    for text, words in (
        ("{% for m in messages %}\n{{ m['content'] ", "own.jinja:2: is no Jinja template: unexpected end of template"),
        ("\n{{ messages[0]['content'] + 1 }}", 'can only concatenate str (not "int") to str (line 2 of it). Mend the template'),
        ("{{ messages[0]['content'] }}", "template 'own.jinja' ends an answer with 'Hi'"),
    ):
        told = bench.error(rows, template="own.jinja", template_text=text)
        assert words in told and "own.jinja" in told and "n.jsonl" not in told, told
