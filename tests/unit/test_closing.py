"""What a run says at its end: nothing that a stage warned of is left in its log alone."""

from types import SimpleNamespace

from tunestation import closing


def work(**warnings: list[str]) -> SimpleNamespace:
    records = {stage: {"observed": {"warnings": found} if found else {}} for stage, found in warnings.items()}
    return SimpleNamespace(records=lambda: records)


def test_warnings_of_all_stages_stand_in_one_table():
    said = closing.warnings(work(prepare=["2 rows dropped", "1 row repaired"], train=["loss rose"], merge=[]))
    assert [line.split(None, 1) for line in said.splitlines()[3:]] == [
        ["prepare", "2 rows dropped"],
        ["prepare", "1 row repaired"],
        ["train", "loss rose"],
    ]


def test_without_warnings_there_is_no_table():
    assert closing.warnings(work(prepare=[], train=[])) == ""


def test_a_small_figure_is_not_shown_as_none():
    record = {"metrics": {"merged_kl": 4.7e-06, "loss": 0.283, "untrained": 0.0}}
    said = closing.results(SimpleNamespace(records=lambda: {"evaluate": record}))
    assert [line.split() for line in said.splitlines()[3:]] == [["merged_kl", "4.7e-06"], ["loss", "0.2830"], ["untrained", "0.0000"]]


def test_what_training_took_is_told_beside_what_was_planned():
    found = {"step": "the fast step", "peak_memory_gb": 9.876, "tokens_per_second": 12345.6}
    assert closing._step(found) == ["Trained by the fast step."]
    assert closing._step(found | {"planned": {"peak_memory_gb": 9.5, "tokens_per_second": 13000}}) == [
        "Trained by the fast step.",
        "It took 9.88 GB of memory (planned: 9.50) at 12,346 tokens a second (planned: 13,000).",
    ]
