"""Reading files: every row with its place, every problem with file and line."""

import json

import pytest
from reading import needs_shared, problems, read_rows, shared, write

from tunestation.data.problems import LIMIT, Problems
from tunestation.data.readers import read_rows as stream_rows


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_one_object_a_line_and_an_array_are_read_under_either_suffix(tmp_path, name):
    lines = read_rows(write(tmp_path, name, '{"a": 1}\n\n{"a": "é"}\n'), name)
    array = read_rows(write(tmp_path, name, ' [\n{"a": 1}, {"a": "é"}]'), name)
    assert [row.values for row in lines] == [row.values for row in array] == [{"a": 1}, {"a": "é"}]
    assert [row.where for row in lines] == [f"{name}:1", f"{name}:3"]
    assert [row.where for row in array] == [f"{name}:[0]", f"{name}:[1]"]


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path):
    assert read_rows(write(tmp_path, "x.jsonl", b'\xef\xbb\xbf{"a": 1}'), "x.jsonl")[0].values == {"a": 1}
    assert read_rows(write(tmp_path, "x.csv", b"\xef\xbb\xbfa\n1\n"), "x.csv")[0].values == {"a": "1"}


def test_unicode_line_separators_inside_a_text_do_not_end_a_line(tmp_path):
    text = "one\u2028two\x85three"
    rows = read_rows(write(tmp_path, "x.jsonl", json.dumps({"a": text}, ensure_ascii=False)), "x.jsonl")
    assert rows[0].values == {"a": text}


def test_windows_line_ends_are_read(tmp_path):
    assert len(read_rows(write(tmp_path, "x.jsonl", '{"a": 1}\r\n{"a": 2}\r\n'), "x.jsonl")) == 2


def test_a_missing_file_is_named(tmp_path):
    assert problems(tmp_path / "gone.jsonl")[0].startswith("gone.jsonl: the file does not exist.")


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "x.jsonl").mkdir()
    assert "does not exist" in problems(tmp_path / "x.jsonl")[0]


@pytest.mark.parametrize(("name", "content"), [("x.json", ""), ("x.jsonl", " \n\n"), ("x.json", "[]"), ("x.csv", ""), ("x.csv", "a,b\n")])
def test_a_file_without_rows_is_empty(tmp_path, name, content):
    assert problems(write(tmp_path, name, content)) == [f"{name}: the file is empty: it holds no rows."]


def test_bytes_that_are_not_utf8_are_named_by_offset_and_line(tmp_path):
    content = b'{"a": "x"}\n{"a": "\xd6\xd0"}'
    found = problems(write(tmp_path, "x.jsonl", content))
    assert found == [
        "x.jsonl:2: is not UTF-8: the byte 0xd6 fits nothing. Save the file as UTF-8, or name its encoding, as 'read: {encoding: gb18030}'."
    ]


def test_a_malformed_line_is_named_by_file_and_number_with_all_others(tmp_path):
    found = problems(write(tmp_path, "x.jsonl", '{"a": 1}\n{"a": \n{"a": 2}\n{a: 3}\n'))
    assert [line.split(" ")[0] for line in found] == ["x.jsonl:2:", "x.jsonl:4:"]
    assert all("malformed JSON" in line for line in found)


def test_a_malformed_array_is_named_by_its_line(tmp_path):
    assert problems(write(tmp_path, "x.json", '[{"a": 1},\n{"a": 2}\n{"a": 3}]'))[0].startswith("x.json:3: malformed JSON")


def test_only_the_first_problems_are_shown_and_the_others_counted(tmp_path):
    found = problems(write(tmp_path, "x.jsonl", "{\n" * 50))
    assert len(found) == LIMIT + 1
    assert found[-1] == "x.jsonl: and 30 more problems like these."


def test_rows_that_are_no_objects_are_named(tmp_path):
    assert problems(write(tmp_path, "x.json", '[{"a": 1}, "text", 3]')) == [
        'x.json:[1]: the row is no object but "text".',
        "x.json:[2]: the row is no object but 3.",
    ]


@pytest.mark.parametrize(("lines", "places"), [(True, ("2", "4", "5")), (False, ("[1]", "[3]", "[4]"))])
def test_a_key_that_stands_twice_in_one_object_is_named_with_its_row_and_the_others_are_read(tmp_path, lines, places):
    rows = ['{"a": 1, "b": {"a": 2}}', '{"a": 1, "b": 2, "a": 3}', '{"a": 1}', '{"m": [{"a": 1, "": 2, "": 3}]}', '{"a": 1, "a": 1}']
    text = "\n".join(rows) if lines else f"[{', '.join(rows)}]"
    found = Problems("x.json")
    read = [row.values for row in stream_rows(write(tmp_path, "x.json", text), "x.json", found)]
    assert read == [{"a": 1, "b": {"a": 2}}, {"a": 1}]
    told = zip(places, ("a", "", "a"), strict=True)
    assert [str(problem) for problem in found.told()] == [
        f"x.json:{place}: the row has the key '{key}' twice in one object. Keep one of them." for place, key in told
    ]


def test_a_key_that_stands_twice_in_a_malformed_row_is_not_blamed_on_the_next(tmp_path):
    assert len(problems(write(tmp_path, "x.jsonl", '{"a": {"b": 1, "b": 2}\n{"a": 1}'))) == 1


def test_a_file_that_is_one_object_is_told_apart_from_lines(tmp_path):
    assert "the file is one JSON object." in problems(write(tmp_path, "x.json", '{\n"data":\n[{"a": 1}]}'))[0]


def test_an_unknown_suffix_names_those_that_can_be_read(tmp_path):
    assert problems(write(tmp_path, "x.doc.gz", "x")) == [
        "x.doc.gz: files of kind '.doc' cannot be read. Use one of: .json, .jsonl, .csv, .tsv, .xlsx, .parquet, .arrow, .txt; "
        "each may be compressed (.gz, .zst)."
    ]


def test_csv_rows_are_placed_by_the_line_they_begin_on(tmp_path):
    rows = read_rows(write(tmp_path, "x.csv", 'q,a\nhi,"two\nlines, and ""quotes"""\n\nend,.\n'), "x.csv")
    assert [(row.where, row.values) for row in rows] == [
        ("x.csv:2", {"q": "hi", "a": 'two\nlines, and "quotes"'}),
        ("x.csv:5", {"q": "end", "a": "."}),
    ]


def test_a_csv_row_with_too_many_or_too_few_fields_is_named(tmp_path):
    found = problems(write(tmp_path, "x.csv", "q,a\n1,2,3\nok,ok\n4\n"))
    assert found == [
        "x.csv:2: the row has 3 fields, the first line names 2 columns.",
        "x.csv:4: the row has 1 fields, the first line names 2 columns.",
    ]


def test_an_unclosed_quote_does_not_swallow_the_rest_of_the_file(tmp_path):
    assert problems(write(tmp_path, "x.csv", 'q,a\n1,2\n"open,4\n5,6\n'))[0].startswith("x.csv:3: malformed CSV")


def test_two_columns_of_one_name_are_a_problem(tmp_path):
    assert "two columns have the same name: q" in problems(write(tmp_path, "x.csv", "q,q\n1,2\n"))[0]


def test_a_field_longer_than_the_csv_modules_own_limit_is_read(tmp_path):
    assert len(read_rows(write(tmp_path, "x.csv", "q,a\nx," + "y" * 200_000), "x.csv")[0].values["a"]) == 200_000


@needs_shared
def test_the_alpaca_files_and_the_lines_of_c4_are_read_whole():
    sizes = {name: len(read_rows(shared(name), name)) for name in ("alpaca_en_demo.json", "alpaca_zh_demo.json", "c4_demo.jsonl")}
    assert sizes == {"alpaca_en_demo.json": 999, "alpaca_zh_demo.json": 1000, "c4_demo.jsonl": 300}
