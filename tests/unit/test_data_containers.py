"""Compressed, columnar, tabbed and plain text files, other encodings, and arrays that are larger than what is read at once."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reading import problems, read_rows, write

from tunestation.data.readers import json_files

ROWS = [{"q": "1", "a": "一"}, {"q": "2", "a": "二"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def parquet(tmp_path, table, name="x.parquet"):
    pyarrow.parquet.write_table(table, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstd)])
def test_compressed_files_are_read_like_plain_ones(tmp_path, suffix, compress):
    assert [row.values for row in read_rows(write(tmp_path, f"x.jsonl{suffix}", compress(LINES)))] == ROWS
    assert [row.values for row in read_rows(write(tmp_path, f"x.json{suffix}", compress(json.dumps(ROWS).encode())))] == ROWS
    table = parquet(tmp_path, pyarrow.Table.from_pylist(ROWS)).read_bytes()
    assert [row.values for row in read_rows(write(tmp_path, f"y.parquet{suffix}", compress(table)))] == ROWS


def test_a_file_of_several_compressed_pieces_is_read_to_its_end(tmp_path):
    assert len(read_rows(write(tmp_path, "x.jsonl.gz", gzip.compress(LINES) * 3))) == 6
    assert len(read_rows(write(tmp_path, "x.jsonl.zst", zstd(LINES) * 3))) == 6


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.json.zst", "x.parquet.gz"])
def test_a_damaged_or_cut_off_compressed_file_is_one_problem(tmp_path, name):
    whole = zstd(LINES * 100) if name.endswith("zst") else gzip.compress(LINES * 100)
    for content in (b"no such thing", whole[:-9]):
        (told,) = problems(write(tmp_path, name, content))
        assert told.startswith(f"{name}: cannot be read: ") and "Mend the file" in told


def test_parquet_keeps_nested_values_and_names_its_rows(tmp_path):
    turns = [{"messages": [{"role": "user", "content": "a", "loss": None}, {"role": "assistant", "content": "b", "loss": False}]}]
    (row,) = read_rows(parquet(tmp_path, pyarrow.Table.from_pylist(turns)))
    assert (row.values, row.where) == (turns[0], "x.parquet:row 1")


@pytest.mark.parametrize("writer", [pyarrow.ipc.new_file, pyarrow.ipc.new_stream])
def test_arrow_files_and_arrow_streams_are_read(tmp_path, writer):
    table = pyarrow.Table.from_pylist(ROWS * 400)
    with writer(str(tmp_path / "x.arrow"), table.schema) as sink:
        sink.write_table(table, max_chunksize=300)
    rows = read_rows(tmp_path / "x.arrow")
    assert ([row.values for row in rows], rows[-1].where) == (ROWS * 400, "x.arrow:row 800")


def test_a_parquet_text_that_is_no_utf8_is_named_by_its_row(tmp_path):
    texts = pyarrow.array([b"ok", b"\xd6\xd0", b"fine"]).view(pyarrow.string())
    assert problems(parquet(tmp_path, pyarrow.table({"q": texts}))) == [
        "x.parquet:row 2: is not UTF-8: the byte 0xd6 fits nothing. Write the file again with UTF-8 texts."
    ]


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_a_file_that_is_no_table_is_one_problem(tmp_path, name):
    (told,) = problems(write(tmp_path, name, b"PAR1 is where the likeness ends"))
    assert told.startswith(f"{name}: is not {'Parquet' if name == 'x.parquet' else 'Arrow'} that can be read: ")


def test_tabs_separate_the_fields_of_tsv(tmp_path):
    rows = read_rows(write(tmp_path, "x.tsv", 'q\ta\n1, or 2\t"one\ttab"\n'))
    assert [row.values for row in rows] == [{"q": "1, or 2", "a": "one\ttab"}]


def test_a_text_file_is_one_document_or_one_a_paragraph_or_one_a_line(tmp_path):
    path = write(tmp_path, "x.txt", "one\ntwo\n\n \nthree\n")
    found = {kind: [(row.where, row.values["text"]) for row in read_rows(path, document=kind)] for kind in ("file", "paragraph", "line")}
    assert found == {
        "file": [("x.txt:1", "one\ntwo\n\n \nthree\n")],
        "paragraph": [("x.txt:1", "one\ntwo"), ("x.txt:5", "three")],
        "line": [("x.txt:1", "one"), ("x.txt:2", "two"), ("x.txt:5", "three")],
    }
    assert problems(write(tmp_path, "x.txt", " \n\n")) == ["x.txt: the file is empty: it holds no rows."]


@pytest.mark.parametrize("encoding", ["gb18030", "big5", "utf-16", "utf-16-le", "utf-8-sig"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv"])
def test_other_encodings_are_read_when_named(tmp_path, encoding, name):
    text = {"x.jsonl": LINES.decode(), "x.json": json.dumps(ROWS, ensure_ascii=False), "x.csv": "q,a\n1,一\n2,二\n"}[name]
    rows = read_rows(write(tmp_path, name, text.encode(encoding)), encoding=encoding)
    assert [row.values for row in rows] == ROWS


def test_bytes_that_do_not_fit_the_encoding_are_named_by_line(tmp_path):
    text = '[\n{"q": "好"},\n{"q": "x'.encode() + b'\xff"}]'
    assert problems(write(tmp_path, "x.json", text))[0].startswith("x.json:3: is not UTF-8: the byte 0xff fits nothing.")
    assert problems(write(tmp_path, "x.csv", "q\n好\n".encode("gb18030")))[0].startswith("x.csv:2: is not UTF-8: the byte 0xba fits")
    assert problems(write(tmp_path, "x.jsonl", LINES), encoding="ascii")[0].startswith("x.jsonl:1: is not ASCII: the byte 0xe4 fits")
    assert "as 'read: {encoding: utf-16}'" in problems(write(tmp_path, "x.jsonl", LINES.decode().encode("utf-16")))[0]
    assert "cannot be read" in problems(write(tmp_path, "x.jsonl", LINES.decode().encode("utf-16")[:-1]), encoding="utf-16")[0]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.text(max_size=3), values, max_size=3), min_size=1, max_size=6), st.integers(1, 40), st.booleans())
def test_an_array_is_read_alike_wherever_the_chunks_are_cut(tmp_path_factory, rows, chunk, indented):
    path = tmp_path_factory.getbasetemp() / "array.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1 if indented else None), encoding="utf-8")
    before, json_files.CHUNK = json_files.CHUNK, chunk
    try:
        assert [row.values for row in read_any(path)] == rows
    finally:
        json_files.CHUNK = before


def read_any(path):
    """The rows of a file that may well hold nothing but empty objects."""
    from tunestation.data.problems import Problems
    from tunestation.data.readers import read_rows as stream

    return list(stream(path, path.name, Problems(path.name)))


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[{"a": 1} {"a": 2}]', ":1"),
        ('[{"a": 1},\n]', ":2"),
        ('[{"a": 1},\n{"a": tru}]', ":2"),
        ('[\n{"a": "x\n"}]', ":2"),
        ('[{"a": 1}', ":1"),
        ('[{"a": 1}]\n]', ":2"),
        ('[{"a": 12}, {"b', ":1"),
        ('[{"a": "\\ux123"}]', ":1"),
    ],
)
def test_a_malformed_array_is_named_by_line_wherever_the_chunks_are_cut(tmp_path, monkeypatch, chunk, text, place):
    monkeypatch.setattr(json_files, "CHUNK", chunk)
    (told,) = problems(write(tmp_path, "x.json", text))
    assert told.startswith(f"x.json{place}: malformed JSON: ")


def test_numbers_and_nesting_beyond_what_python_reads_are_told(tmp_path):
    deep = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"
    for content in ('{"a": ' + "9" * 5000 + "}\n", deep, f"[{deep}]"):
        (told,) = problems(write(tmp_path, "x.jsonl", content))
        assert told.startswith(("x.jsonl:1: malformed JSON: ", "x.jsonl:1: malformed JSON: lists or objects are nested too deeply"))


def test_a_row_of_five_megabytes_is_a_row_like_any_other(tmp_path):
    large = {"q": "好" * 2_000_000, "a": "ok"}
    assert read_rows(write(tmp_path, "x.jsonl", json.dumps(large, ensure_ascii=False)))[0].values == large
    assert read_rows(write(tmp_path, "x.json", json.dumps([large, large], ensure_ascii=False)))[1].values == large
