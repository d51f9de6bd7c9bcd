"""A spreadsheet from the web whose digest the recipe leaves open: the first fetch pins it, and a changed file is refused."""

import hashlib
import io
import json

import openpyxl
import pytest
from fake_hub import running

from tunestation import app
from tunestation.errors import InputError
from tunestation.work import open_recipe

RECIPE = """\
schema_version: 1
name: web
summary: A sheet from the web.
model:
  source: {kind: starter}
data:
  sources:
    - source: {kind: url, url: 'URL'}
      read: {sheet: DrugQA}
      format: {kind: columns, input: Question, output: Answer}
  max_dropped: 0.1
template: chatml
"""


def workbook(answers: list[str | None]) -> bytes:
    """A workbook whose second sheet holds a question for each answer."""
    book = openpyxl.Workbook()
    sheet = book.create_sheet("DrugQA")
    sheet.append(["Question", "Focus (Drug)", "Answer"])
    for number, answer in enumerate(answers):
        sheet.append([f"What is drug {number} for?", f"drug {number}", answer])
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()


@pytest.fixture
def web(tmp_path, monkeypatch):
    """(the server, the recipe's path) on volumes of their own."""
    for name in ("TUNE_MODELS", "TUNE_DATASETS", "TUNE_RUNS", "TUNE_CACHE", "TUNE_OFFLINE", "TUNE_PROCESSES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TUNE_RECIPES", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "*")
    with running() as hub:
        hub.pages["/drugs.xlsx"] = workbook(["For pain.", None, *(f"For fever {number}." for number in range(18))])
        (tmp_path / "web.yaml").write_text(RECIPE.replace("URL", f"{hub.url}/drugs.xlsx"), encoding="utf-8")
        yield hub, tmp_path / "web.yaml"


def test_the_first_run_pins_the_file_and_prepare_names_the_empty_answer(web, capfd):
    hub, _ = web
    app.stage("web", "prepare")
    digest = hashlib.sha256(hub.pages["/drugs.xlsx"]).hexdigest()
    work = open_recipe("web")
    assert work.pins == {f"file {hub.url}/drugs.xlsx": digest} and work.inputs.pending == ()
    assert (work.settings.datasets / "url" / digest[:16] / "drugs.xlsx").read_bytes() == hub.pages["/drugs.xlsx"]
    facts = work.records()["prepare"]["facts"]
    assert facts["rows"] == 20
    assert "empty answer" in capfd.readouterr().out
    assert len(hub.asked("/drugs.xlsx")) == 1


def test_pin_writes_the_digest_into_the_lock_and_another_content_is_another_pin(web, capsys):
    hub, path = web
    for answers in (["One."], ["Two."]):
        hub.pages["/drugs.xlsx"] = workbook(answers)
        digest = hashlib.sha256(hub.pages["/drugs.xlsx"]).hexdigest()
        app.pin_recipe("web")
        assert f"file {hub.url}/drugs.xlsx is {digest}" in capsys.readouterr().out
        assert json.loads(path.with_suffix(".lock.json").read_text())["resolved"] == {f"file {hub.url}/drugs.xlsx": digest}


def test_a_changed_file_does_not_pass_for_the_one_in_the_lock(web):
    hub, path = web
    pins = {f"file {hub.url}/drugs.xlsx": "0" * 64}
    path.with_suffix(".lock.json").write_text(json.dumps({"schema_version": 1, "stages": {}, "resolved": pins}))
    with pytest.raises(InputError, match=r"has SHA-256 [0-9a-f]{64}, but the recipe wants 0000"):
        app.stage("web", "fetch")


def test_without_a_network_an_unpinned_file_is_told(web):
    hub, _ = web
    with pytest.raises(InputError, match=r"what file http.*/drugs.xlsx stands for is not known yet. Run 'invoke pin web' once"):
        app.stage("web", "fetch", offline=True)
    assert not hub.asked("/drugs.xlsx")


def test_an_address_that_does_not_exist_is_told(web):
    hub, _ = web
    del hub.pages["/drugs.xlsx"]
    with pytest.raises(Exception, match="answers with HTTP status 404"):
        app.pin_recipe("web")
