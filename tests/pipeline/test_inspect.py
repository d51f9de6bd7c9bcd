"""`invoke inspect`: what of a row is learned, in the terminal and on a page that runs nothing of the data."""

import json
import re
from pathlib import Path

import pytest
from browsing import CHROMIUM, FLAGS
from playwright.sync_api import sync_playwright
from preparing import Bench, numbers, part
from station import PATIENCE

from tunestation.data.inspection import chosen, histogram
from tunestation.errors import InputError
from tunestation.pipeline.job import Job, Result
from tunestation.stages import inspect, prepare

HOSTILE = '</script><script>document.title = "broken"</script><img src=x onerror="document.title=1">&amp;§data'


class Look:
    """A prepared data set, and looks at it."""

    def __init__(self, root: Path, rows: list[dict], **settings):
        self.bench = Bench(root)
        (root / "runs").mkdir()
        self.params = {
            "parts": [self.bench.rows("n.jsonl", rows)], "template": "chatml", "max_tokens": 40, "packing": True, "max_dropped": 0.5,
            "held_out_fraction": 0.0, "seed": 7, "tokenizer": {"vocab_size": 400},
        } | settings  # fmt: skip

    def run(self, **asked) -> Result:
        job = Job("inspect", "", {}, {}, self.bench.root / "runs/inspect", self.bench.volumes, {})
        return inspect.run({"recipe": "tiny", "prepare": self.params, **asked}, job)

    @property
    def page(self) -> str:
        return (self.bench.root / "runs/inspect.html").read_text(encoding="utf-8")


@pytest.fixture
def look(tmp_path) -> Look:
    odd = [{"q": "Who?", "a": ""}, {"q": "Count.", "a": "one two three " * 30}, {"q": "Hi", "a": HOSTILE}, numbers(1)[0]]
    return Look(tmp_path, [*numbers(8), *odd])


def data(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page)[1])


def test_a_row_is_shown_with_what_is_learned_of_it(look, capsys):
    look.run(row=3)
    said = capsys.readouterr().out
    assert "row 3 · n.jsonl:3 · kept · " in said
    assert "<|im_start|>user\nWhat comes after 2?<|im_end|>\n<|im_start|>assistant\n⟦It is 3, three.<|im_end|>⟧\n" in said


def test_tokens_are_shown_on_demand_and_what_is_cut_off_is_told(look, capsys):
    look.run(row=10, tokens=True)
    said = capsys.readouterr().out
    assert "row 10 · n.jsonl:10 · truncated · " in said
    shown = [line.split() for line in said.partition("--  ")[2].splitlines()[1:]]
    assert [line[-1] for line in shown].index("lost") == 40
    assert "⟨cut off: " in said


def test_a_dropped_row_says_why_and_a_row_that_is_not_there_is_refused(look, capsys):
    look.run(row=9)
    assert "row 9 · n.jsonl:9 · dropped: empty answer" in capsys.readouterr().out
    with pytest.raises(InputError, match="there is no row 13: the sources have 12 rows"):
        look.run(row=13)


def test_the_page_holds_the_numbers_and_every_row(look, capsys):
    look.run()
    said, found = capsys.readouterr().out, data(look.page)
    assert re.search(r"dropped +1\n", said) and "inspect.html" in said
    assert [row["number"] for row in found["rows"]] == list(range(1, 13))
    assert [row["line"]["fate"] for row in found["rows"]].count("kept") == 9
    assert "1 row of 12 dropped: 1 empty answer" in look.page and "1 row equal to an earlier row" in look.page
    third = found["rows"][2]
    assert [text for text, state in third["segments"] if state == 1] == ["It is 3, three.<|im_end|>"]
    assert "".join(found["vocabulary"][str(token)] for token, _ in third["tokens"]) == "".join(text for text, _ in third["segments"])
    assert look.page.count("<svg") == 3 and "http" not in re.sub("http-equiv", "", look.page)


def test_a_second_look_prepares_nothing_and_a_changed_file_is_noticed(look, capsys):
    look.run(row=1)
    assert "it is done now, for a look" in capsys.readouterr().out
    look.run(row=1)
    assert "it is done now" not in capsys.readouterr().out
    look.params["parts"][0]["files"][0]["sha256"] = "0" * 64
    with pytest.raises(InputError, match="the file changed"):
        look.run(row=1)


def test_the_result_of_prepare_is_shown_where_there_is_one(look, capsys):
    output = look.bench.root / "prepared"
    output.mkdir()
    look.bench.manifest(None, [[]])
    needs = {"fetch": look.bench.root / "fetch"}
    result = prepare.run(look.params, Job("prepare", "", {}, needs, output, look.bench.volumes, {}))
    (output / "stage.json").write_text(json.dumps({"facts": result.facts, "observed": result.observed}))
    capsys.readouterr()
    job = Job("inspect", "", {}, needs | {"prepare": output}, look.bench.root / "runs/inspect", look.bench.volumes, {})
    inspect.run({"recipe": "tiny", "prepare": look.params}, job)
    assert "it is done now" not in capsys.readouterr().out
    assert len(data(look.page)["rows"]) == 12


def test_without_the_model_a_folder_with_a_tokenizer_is_enough(look, tmp_path):
    made = look.bench.run(look.params["parts"][0], max_dropped=0.5)[1] / "tokenizer"
    look.params |= {"tokenizer": None}
    with pytest.raises(InputError, match=r"the model of 'tiny' is not on this machine\. Give --tokenizer FOLDER"):
        look.run()
    with pytest.raises(InputError, match="is not a folder"):
        look.run(tokenizer=str(tmp_path / "nowhere"))
    look.run(tokenizer=str(made))
    assert len(data(look.page)["rows"]) == 12


def test_data_that_is_not_here_is_asked_for(look):
    look.params |= {"parts": [part()]}
    with pytest.raises(InputError, match=r"the data of data.sources\[0\] is not on this machine. Run 'invoke fetch tiny' first."):
        look.run()


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}: apt-get install chromium")
def test_the_page_runs_nothing_of_the_data_and_can_be_browsed(look, tmp_path):
    look.run()
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=CHROMIUM, headless=True, args=FLAGS.split(), timeout=PATIENCE * 1000
        )
        context.set_default_timeout(PATIENCE * 1000)
        page, complaints = context.new_page(), []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto((look.bench.root / "runs/inspect.html").as_uri())
        page.locator("#find").fill("onerror")
        assert HOSTILE in page.locator("#row").inner_text()
        assert page.locator("#row img").count() == 0
        page.locator("#find").fill("")
        page.locator("#fate").select_option("dropped")
        assert "row 9 · n.jsonl:9 · dropped: empty answer" in " ".join(page.locator("#place").inner_text().split())
        page.locator("#fate").select_option("every fate")
        page.locator("#tokens").check()
        assert page.locator("#row .token.learned").count() > 3
        assert (page.title(), complaints) == ("tiny: the data", [])
        context.close()


def test_the_task_itself_says_what_it_wrote(station):
    assert "The page: " in station.invoke("inspect", "tiny")


def test_a_histogram_counts_every_value_once_from_0_to_the_top():
    assert histogram([0, 1, 25, 26, 50, 99, 100], 100, 4) == [3, 2, 0, 2]
    assert sum(histogram([], 100)) == 0


def test_odd_rows_are_chosen_first_and_the_others_evenly():
    lines = [{"fate": "dropped" if n % 50 == 0 else "kept"} for n in range(1, 1001)]
    found = chosen(lines, 100)
    assert {n for n in range(1, 1001) if n % 50 == 0} <= found
    assert len(found) <= 100 and max(found) > 950
    assert chosen(lines[:10], 100) == set(range(1, 11))
