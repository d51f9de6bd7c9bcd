"""The whole of prepare on real files with a tokenizer trained on the spot."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from datasets import load_from_disk
from preparing import Bench, answers, digests, numbers, part

from tunestation.data.encoding import IGNORE
from tunestation.data.ledger import read_ledger
from tunestation.data.templates import TEMPLATES
from tunestation.data.tokenizers import load_tokenizer
from tunestation.pipeline.job import Job
from tunestation.stages.prepare import run

SHARED = Path(__file__).parents[2] / "../shared/data"


def test_every_answer_is_learned_once_and_every_fact_is_counted(bench, capsys):
    facts, output = bench.run(bench.rows("n.jsonl", numbers(30)))
    assert sorted(answers(output / "train", output)) == sorted(row["a"] for row in numbers(30))
    packs = load_from_disk(str(output / "train"))
    assert (facts["rows"], facts["conversations"], facts["dropped"], facts["truncated"], facts["repaired"]) == (30, 30, 0, 0, 0)
    assert facts["packs"] == len(packs) < 30
    assert facts["tokens"] == sum(len(ids) for ids in packs["input_ids"])
    assert facts["labelled_tokens"] == sum(label != IGNORE for row in packs["labels"] for label in row)
    assert (facts["held_out_packs"], len(load_from_disk(str(output / "held_out")))) == (0, 0)
    assert facts["longest"] <= 64
    assert "30 rows became 30 conversations" in capsys.readouterr().out


def test_positions_begin_anew_with_each_conversation_of_a_pack(bench):
    _, output = bench.run(bench.rows("n.jsonl", numbers(30)))
    tokenizer, packs = load_tokenizer(output / "tokenizer", "t"), load_from_disk(str(output / "train"))
    assert {str(feature.feature.dtype) for feature in packs.features.values()} == {"int32"}
    for row in packs:
        starts = [index for index, position in enumerate(row["position_ids"]) if position == 0]
        ends = [*starts[1:], len(row["input_ids"])]
        assert len(row["input_ids"]) == len(row["labels"]) == len(row["position_ids"]) <= 64
        for start, end in zip(starts, ends, strict=True):
            assert row["position_ids"][start:end] == list(range(end - start))
            assert tokenizer.decode(row["input_ids"][start:end]).startswith("<|im_start|>user\nWhat comes after")
            assert row["labels"][start] == IGNORE


def test_without_packing_each_conversation_is_a_row_in_shuffled_order(bench):
    facts, output = bench.run(bench.rows("n.jsonl", numbers(30)), packing=False)
    learned = answers(output / "train", output)
    assert facts["packs"] == len(learned) == 30
    assert learned != [row["a"] for row in numbers(30)]
    assert all(row["position_ids"] == list(range(len(row["input_ids"]))) for row in load_from_disk(str(output / "train")))


@pytest.mark.parametrize("packing", [True, False])
def test_equal_inputs_give_equal_bytes(bench, packing):
    rows = bench.rows("n.jsonl", numbers(40))
    first, second = (bench.run(rows, packing=packing, held_out_fraction=0.2) for _ in range(2))
    assert first[0] == second[0]
    assert digests(first[1]) == digests(second[1])
    assert {"probe.json", "rows.jsonl.zst", "train/state.json", "held_out/state.json", "tokenizer/chat_template.jinja"} <= set(
        digests(first[1])
    )
    other = bench.run(rows, packing=packing, held_out_fraction=0.2, seed=8)
    assert digests(other[1])["train/data-00000-of-00001.arrow"] != digests(first[1])["train/data-00000-of-00001.arrow"]


def test_no_file_of_the_output_holds_a_path_of_this_machine(bench):
    _, output = bench.run(bench.rows("n.jsonl", numbers(5)))
    assert not [path for path in output.rglob("*") if path.is_file() and str(bench.root).encode() in path.read_bytes()]


def test_a_result_left_half_written_does_not_change_the_next_one(bench):
    rows = bench.rows("n.jsonl", numbers(10))
    _, clean = bench.run(rows)
    stale = bench.root / "out2"
    for name in ("train/data-00000-of-00002.arrow", "tokenizer/extra.json"):
        (stale / name).parent.mkdir(parents=True)
        (stale / name).write_text("half")
    params = {"parts": [rows], "template": "chatml", "max_tokens": 64, "packing": True, "max_dropped": 0.0, "held_out_fraction": 0.0}
    run(
        params | {"seed": 7, "tokenizer": {"vocab_size": 400}},
        Job("prepare", "", {}, {"fetch": bench.root / "fetch"}, stale, bench.volumes, {}),
    )
    assert digests(stale) == digests(clean)


def test_held_out_conversations_are_never_trained_on(bench):
    twins = [*numbers(20), *numbers(5)]
    facts, output = bench.run(bench.rows("n.jsonl", twins), held_out_fraction=0.25)
    trained, held_out = answers(output / "train", output), answers(output / "held_out", output)
    assert len(set(held_out)) == 5
    assert not set(trained) & set(held_out)
    assert len(trained) + len(held_out) == facts["conversations"] == 25
    assert facts["held_out_packs"] == len(load_from_disk(str(output / "held_out")))


def test_all_copies_of_a_repeated_row_go_the_same_way(bench):
    facts, output = bench.run(bench.rows("n.jsonl", numbers(10)) | {"repeat": 3}, held_out_fraction=0.01)
    held_out, trained = answers(output / "held_out", output), answers(output / "train", output)
    assert (facts["rows"], facts["conversations"]) == (10, 30)
    assert (len(held_out), len(set(held_out))) == (3, 1)
    assert all(trained.count(answer) == 3 for answer in trained)
    assert len(trained) == 27


def test_holding_out_the_only_conversation_is_refused(bench):
    assert "leaves nothing to train on" in bench.error(bench.rows("n.jsonl", numbers(1)), held_out_fraction=0.1)


def test_long_rows_are_cut_on_the_right_and_named(bench):
    rows = [*numbers(3), {"q": "Count.", "a": "one two three " * 40}]
    facts, output = bench.run(bench.rows("n.jsonl", rows))
    assert facts["truncated"] == 1
    *kept, entry = read_ledger(output / "rows.jsonl.zst")
    assert [line["fate"] for line in kept] == ["kept"] * 3
    assert (entry["fate"], entry["where"], entry["tokens"]) == ("truncated", "n.jsonl:4", facts["longest"])
    assert entry["lost"] == facts["lost_tokens"] == facts["longest"] - 64
    assert max(len(row) for row in load_from_disk(str(output / "train"))["input_ids"]) == 64


def test_a_question_that_fills_max_tokens_is_dropped_and_named(bench):
    rows = bench.rows("n.jsonl", [*numbers(3), {"q": "one two three " * 40, "a": "Long."}])
    words = bench.error(rows)
    assert "1 of 4 rows (25.0%) cannot be trained; data.max_dropped allows 0.0%." in words
    assert "n.jsonl:4: nothing to learn within max_tokens" in words
    facts, _ = bench.run(rows, max_dropped=0.25)
    assert (facts["rows"], facts["dropped"], facts["conversations"]) == (4, 1, 3)


def test_more_unanswered_rows_than_allowed_fail_and_the_first_five_are_named(bench):
    rows = [*numbers(3), *({"q": f"Who knows {n}?", "a": ""} for n in range(7))]
    words = bench.error(bench.rows("n.jsonl", rows), max_dropped=0.5)
    assert "7 of 10 rows (70.0%) cannot be trained; data.max_dropped allows 50.0%. Mend these rows, or raise data.max_dropped." in words
    assert [f"n.jsonl:{line}: empty answer." in words for line in range(4, 10)] == [True] * 5 + [False]
    assert "and 2 more rows." in words


def test_every_row_with_masked_labels_is_an_error(bench):
    turns = [{"input": "a", "output": "b", "output_with_loss": False}]
    rows = bench.rows("c.jsonl", [{"conversation": turns}] * 3) | {"format": {"kind": "conversation"}}
    words = bench.error(rows, max_dropped=1.0)
    assert "nothing is left to train on, all 3 rows were dropped (3 rows: all labels are masked" in words


def test_a_text_that_spells_a_control_token_is_learned_as_text(bench):
    rows = [*numbers(3), {"q": "End?", "a": "yes<|im_end|>\n<|im_start|>user\nno"}]
    facts, output = bench.run(bench.rows("n.jsonl", rows))
    assert (facts["dropped"], facts["stop_tokens"]) == (0, 4)
    tokenizer = load_tokenizer(output / "tokenizer", "t")
    learned = [label for row in load_from_disk(str(output / "train")) for label in row["labels"] if label != IGNORE]
    assert "yes<|im_end|>\n<|im_start|>user\nno<|im_end|>" in tokenizer.decode(learned)
    assert learned.count(tokenizer.eos_token_id) == 4


def test_repaired_and_blank_rows_are_counted_and_named(bench):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    rows = bench.rows("m.jsonl", [{"messages": messages[:2]}, {}, {"messages": messages}]) | {"format": {"kind": "messages"}}
    facts, output = bench.run(rows)
    assert (facts["rows"], facts["repaired"], facts["blank"], facts["dropped"]) == (2, 1, 1, 0)
    first, blank, repaired = read_ledger(output / "rows.jsonl.zst")
    assert (blank["fate"], blank["where"]) == ("blank", "m.jsonl:2")
    assert (repaired["fate"], repaired["repaired"]) == ("kept", "cut 1 unanswered turn at the end") and "repaired" not in first


def test_the_problems_of_all_files_are_told_at_once(bench):
    (bench.root / "recipe/bad.jsonl").write_text('{"q": "1", "a": "2"}\n{"q": \n')
    wrong_type = bench.rows("typed.jsonl", [{"q": 1, "a": "2"}])
    other_columns = bench.rows("other.jsonl", [{"question": "1", "a": "2"}])
    words = bench.error(part("recipe:bad.jsonl", "recipe:gone.jsonl"), wrong_type, other_columns)
    assert "bad.jsonl:2: malformed JSON" in words
    assert "gone.jsonl: the file does not exist." in words
    assert "typed.jsonl:1: q is a number, not a text." in words
    assert "'q', but other.jsonl has: question, a." in words
    assert "4 problems; nothing was run." in words


def test_a_file_that_changed_since_its_digest_was_taken_is_refused(bench):
    rows = bench.rows("n.jsonl", numbers(3))
    digest = hashlib.sha256((bench.root / "recipe/n.jsonl").read_bytes()).hexdigest()
    with_digest = rows | {"files": [{"ref": "recipe:n.jsonl", "sha256": digest}]}
    assert bench.run(with_digest)[0]["rows"] == 3
    bench.rows("n.jsonl", numbers(4))
    assert bench.error(with_digest).startswith("n.jsonl: the file changed while")


def test_fetched_files_come_from_the_manifest(bench):
    bench.rows("n.jsonl", numbers(3))
    (bench.root / "datasets/hub.jsonl").write_text('{"q": "Hub?", "a": "Hub!"}')
    facts, output = bench.run(part("recipe:n.jsonl"), part(), fetched=[[], [{"ref": "datasets:hub.jsonl", "sha256": None}]])
    assert facts["rows"] == 4
    assert "Hub!" in answers(output / "train", output)


def test_a_generator_writes_the_rows(bench):
    generated = part(format={"kind": "messages"}, generator={"name": "starter-world", "seed": 3, "count": 50})
    facts, _ = bench.run(generated, max_tokens=512)
    assert (facts["rows"], facts["dropped"]) == (50, 0)


def test_an_unknown_generator_names_those_there_are(bench):
    generated = part(format={"kind": "messages"}, generator={"name": "starter-wurld", "seed": 3, "count": 50})
    assert "there is no generator 'starter-wurld'. Choose from: starter-world" in bench.error(generated)


def test_the_tokenizer_of_the_model_is_taken_with_its_template(bench):
    rows = bench.rows("n.jsonl", numbers(10))
    _, trained = bench.run(rows)
    (trained / "tokenizer").rename(bench.root / "models/tiny")
    _, named = bench.run(rows, model="models:tiny")
    _, own = bench.run(rows, model="models:tiny", template="auto")
    assert digests(named) == digests(own)
    assert digests(trained).items() < digests(named).items()
    assert (own / "tokenizer/chat_template.jinja").read_text(encoding="utf-8") == TEMPLATES["chatml"].jinja


def test_a_model_without_a_tokenizer_is_an_error(bench):
    (bench.root / "models/empty").mkdir()
    assert "models:empty: the model folder has no tokenizer" in bench.error(bench.rows("n.jsonl", numbers(3)), model="models:empty")


def test_a_template_that_refuses_rows_names_them(bench):
    rows = bench.rows("n.jsonl", numbers(3))
    _, trained = bench.run(rows)
    (trained / "tokenizer/chat_template.jinja").write_text(
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('system texts are not known') }}{% endif %}"
        "{{ m['content'] + eos_token }}{% endfor %}"
    )
    (trained / "tokenizer").rename(bench.root / "models/picky")
    words = bench.error(rows | {"system": "S"}, model="models:picky", template="auto")
    refused = "the chat template (the model's or your own) refuses this conversation: system texts are not known (line 1 of it)."
    assert f"nothing is left to train on, all 3 rows were dropped (3 rows: {refused}" in words
    assert f"n.jsonl:1: {refused} Change the row, or name another template." in words


def test_the_probe_is_what_training_saw(bench):
    facts, output = bench.run(bench.rows("n.jsonl", numbers(5)))
    probes = json.loads((output / "probe.json").read_text(encoding="utf-8"))
    assert {language: found["sha256"] for language, found in probes.items()} == facts["probe"]
    assert all(found["same_as_chat_template"] for found in probes.values())


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not beside this checkout")
def test_the_real_files_go_through_whole(tmp_path):
    bench = Bench(tmp_path, SHARED)
    alpaca = part("datasets:alpaca_en_demo.json", "datasets:alpaca_zh_demo.json", format={"kind": "alpaca"})
    identity = part("datasets:identity.json", format={"kind": "alpaca"}, variables={"name": "NAME", "author": "AUTHOR"}, repeat=2)
    coach = part("datasets:career_coach.xlsx", system="You are an experienced workplace coach.")
    facts, output = bench.run(coach, alpaca, identity, max_tokens=512, held_out_fraction=0.02, tokenizer={"vocab_size": 2000})
    assert (facts["rows"], facts["conversations"], facts["dropped"], facts["repaired"]) == (246 + 1999 + 91, 246 + 1999 + 182, 0, 0)
    lines = list(read_ledger(output / "rows.jsonl.zst"))
    assert len(lines) == facts["rows"]
    assert facts["truncated"] == sum(line["fate"] == "truncated" for line in lines) > 0
    assert facts["tokens"] / (facts["packs"] * 512) > 0.99
    assert facts["held_out_tokens"] > 0
    assert any("NAME" in answer for answer in answers(output / "train", output))


@pytest.mark.parametrize(
    ("context", "told"), [({"max_position_embeddings": 8}, True), ({"max_position_embeddings": 64}, False), ({}, False)]
)
def test_documents_longer_than_those_that_the_model_was_made_for_are_told(bench, capsys, context, told):
    rows, model = bench.rows("n.jsonl", numbers(30)), bench.root / "models" / "tiny"
    shutil.copytree(bench.run(rows)[1] / "tokenizer", model)
    (model / "config.json").write_text(json.dumps({"model_type": "llama"} | context))
    capsys.readouterr()
    bench.run(rows, model="models:tiny")
    assert ("tokens, and the model was made for 8: lower train.max_tokens" in capsys.readouterr().out) is told
