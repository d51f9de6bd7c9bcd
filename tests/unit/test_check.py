"""What `check` finds beyond the schema: names, local data, the model's folder, this machine. All at once, each with its line."""

import json

import pytest
from recipes_for_tests import ROW, write_rows

from tunestation import app
from tunestation.checking import check_data, check_settings, not_fetched
from tunestation.data.parts import generated
from tunestation.errors import InputError, TunestationError
from tunestation.stages.questions import questions_of

COLUMNS = ("      repeat: 2", "      format: {kind: columns, input: q, output: a}")
CHECKS = "evaluate:\n  checks:\n    - name: asked\n      source: {kind: files, paths: [asked.jsonl]}"


def problems(work) -> list[str]:
    """Everything that the check of an opened recipe finds, without folders."""
    with pytest.raises(InputError) as caught:
        check_data(work)
    return [str(problem).replace(f"{work.path.parent}/", "") for problem in caught.value.problems]


def test_a_recipe_without_problems_passes(bench, capsys):
    app.check(str(bench.recipe()))
    assert capsys.readouterr().out == f"rows.jsonl: read as messages (messages).\n{bench.recipes}/small.yaml: no problems.\n"


def test_an_unknown_template_is_told_with_the_nearest_one(bench):
    assert problems(bench.open(("chatml", "chatmll"))) == ["small.yaml:10: template 'chatmll' is not known. Did you mean 'chatml'?"]
    (told,) = problems(bench.open(("chatml", "nothing-like-it")))
    assert told.startswith("small.yaml:10: template 'nothing-like-it' is not known. Choose from: auto, chatml, ")


def test_a_template_file_that_does_not_compile_is_told_with_its_line(bench):
    for text, told in (
        ("{{ bos_token }}\n{% for m in messages %}\n{{ m['content'] ", "own.jinja:3: is no Jinja template: unexpected end of template"),
        ("{{ bos_token }}\n{{ messages | shout }}", "own.jinja:2: is no Jinja template: No filter named 'shout'. Mend this line."),
    ):
        (bench.recipes / "own.jinja").write_text(text, encoding="utf-8")
        (found,) = problems(bench.open(("chatml", "own.jinja")))
        assert found.startswith(told)
    tags = "{% for m in messages %}{% generation %}{{ m | tojson }}{% endgeneration %}{% break %}{% endfor %}"  # what transformers adds
    (bench.recipes / "own.jinja").write_text(tags, encoding="utf-8")
    check_data(bench.open(("chatml", "own.jinja")))


def test_an_unknown_generator_is_told_with_the_nearest_one(bench):
    checks = "evaluate:\n  checks:\n    - {name: c, source: {kind: generator, name: nothing-like-it}}"
    work = bench.open(("{kind: files, paths: [rows.jsonl]}", "{kind: generator, name: starter-word, count: 3}"), ("evaluate:", checks))
    first, second = problems(work)
    assert first == "small.yaml:8: data.sources[0].source.name 'starter-word' is no generator. Did you mean 'starter-world'?"
    assert second.startswith(
        "small.yaml:16: evaluate.checks[0].source.name 'nothing-like-it' is no generator. Choose from: starter-world, "
    )


def test_a_stage_that_meets_an_unknown_generator_says_so(bench):
    with pytest.raises(InputError, match=r"there is no generator 'starter-word'. Choose from: starter-world, "):
        generated("starter-word", 1, 1)
    check = {"name": "c", "generator": {"name": "starter-word", "seed": 0, "count": 0}, "files": [], "match": "exact", "variables": {}}
    with pytest.raises(InputError, match=r"there is no generator 'starter-word'"):
        questions_of(check, bench.open().shelf.volumes)


def test_a_missing_column_is_told_with_the_field_that_names_it_and_the_columns_there_are(bench):
    (bench.recipes / "table.csv").write_text("question,a,kind\nHi,Hello,x\n", encoding="utf-8")
    assert problems(bench.open(("rows.jsonl", "table.csv"), COLUMNS)) == [
        "small.yaml:9: data.sources[0].format.input names column 'q', but table.csv has: question, a, kind."
    ]


def test_a_file_of_another_format_is_told_with_the_line_of_its_source(bench):
    write_rows(bench.recipes / "rows.jsonl", [{"instruction": "Hi", "output": "Hello"}])
    assert problems(bench.open(("      repeat: 2", "      format: {kind: messages}"))) == [
        "small.yaml:9: data.sources[0].format 'messages' reads column 'messages', but rows.jsonl has: instruction, output."
    ]


def test_malformed_rows_are_told_by_file_and_line(bench):
    (bench.recipes / "rows.jsonl").write_text(json.dumps(ROW) + '\n{"messages": [}\n[1]\n', encoding="utf-8")
    bad, no_object = problems(bench.open())
    assert bad.startswith("rows.jsonl:2: malformed JSON: ")
    assert no_object == "rows.jsonl:3: the row is no object but [1]."
    write_rows(bench.recipes / "rows.jsonl", [ROW, {"messages": [{"role": "boss", "content": "Hi"}]}, {"messages": "Hi"}])
    assert problems(bench.open()) == [
        "rows.jsonl:2: messages[0] has the role 'boss'. Known roles are system, developer, user, assistant, tool.",
        "rows.jsonl:3: messages is a text, not a list.",
    ]


def test_a_placeholder_without_a_value_is_told(bench):
    row = {"messages": [{"role": "user", "content": "Hi {{nam}}"}, {"role": "assistant", "content": "Hello."}]}
    write_rows(bench.recipes / "rows.jsonl", [row])
    assert problems(bench.open(("repeat: 2", "variables: {name: Ada}"))) == [
        "rows.jsonl:1: the placeholder {{nam}} has no value. Add 'nam' to the part's variables, which has: name."
    ]


def test_a_missing_or_empty_file_is_told_together_with_the_rest(bench):
    (bench.recipes / "empty.jsonl").write_text("")
    found = problems(bench.open(("[rows.jsonl]", "[gone.jsonl, empty.jsonl]"), ("chatml", "chatmll")))
    assert [told.split(" It was looked")[0] for told in found] == [
        "small.yaml:8: there is no file 'gone.jsonl'.",
        "small.yaml:10: template 'chatmll' is not known. Did you mean 'chatml'?",
        "empty.jsonl: the file is empty: it holds no rows.",
    ]


def test_more_untrainable_rows_than_allowed_are_told_with_the_line_of_the_limit(bench):
    unanswered = {"messages": [{"role": "user", "content": "Hi"}]}
    write_rows(bench.recipes / "rows.jsonl", [ROW, unanswered])
    limited = ("data:", "data:\n  max_dropped: 0.1")
    assert problems(bench.open(limited)) == [
        "small.yaml:7: 1 of 2 rows (50.0%) cannot be trained; data.max_dropped allows 10.0%. Mend these rows, or raise data.max_dropped.",
        "rows.jsonl:2: no answer.",
    ]


def test_untrainable_rows_below_the_limit_are_told_but_are_no_problem(bench, capsys):
    write_rows(bench.recipes / "rows.jsonl", [ROW, {"messages": [{"role": "user", "content": "Hi"}]}])
    check_data(bench.open(("data:", "data:\n  max_dropped: 0.5")))
    assert capsys.readouterr().out.splitlines()[1:] == ["1 of 2 rows in files cannot be trained: no answer"]


def test_rows_of_generators_count_when_the_share_of_untrainable_ones_is_judged(bench):
    write_rows(bench.recipes / "rows.jsonl", [ROW, {"messages": [{"role": "user", "content": "Hi"}]}])
    generator = "      repeat: 2\n    - source: {kind: generator, name: starter-world, count: 98}"
    check_data(bench.open(("      repeat: 2", generator), ("data:", "data:\n  max_dropped: 0.01")))
    assert "50.0%" in problems(bench.open())[0]


def test_questions_that_are_none_are_told_by_file_and_line(bench):
    write_rows(bench.recipes / "asked.jsonl", [{"prompt": "Hi", "answer": "Hello"}, {"prompt": "Hi"}, {"prompt": 1, "answer": "x"}])
    assert [told.split(" A row")[0] for told in problems(bench.open(("evaluate:", CHECKS)))] == [
        "asked.jsonl:2: is no question.",
        "asked.jsonl:3: is no question.",
    ]
    (bench.recipes / "asked.jsonl").write_text("{\n")
    assert problems(bench.open(("evaluate:", CHECKS)))[0].startswith("asked.jsonl:1: malformed JSON")


def test_questions_with_a_placeholder_without_a_value_are_told(bench):
    write_rows(bench.recipes / "asked.jsonl", [{"prompt": "Who?", "answer": "{{nam}}"}])
    (told,) = problems(bench.open(("evaluate:", f"{CHECKS}\n      variables: {{name: Ada}}")))
    assert told.startswith("asked.jsonl:1: the placeholder {{nam}} has no value.")


def test_a_check_without_questions_is_told_with_its_line(bench):
    checks = "evaluate:\n  checks:\n    - {name: none, source: {kind: generator, name: starter-world}}"
    assert problems(bench.open(("evaluate:", checks))) == [
        "small.yaml:16: evaluate.checks[0] has no questions. Name a file with questions, or a generator and its count."
    ]


def test_a_model_folder_that_cannot_be_trained_is_told_with_the_line_of_the_model(bench):
    folder = bench.folder / "home" / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "minicpm", "auto_map": {"AutoModel": "modeling_x.Model"}}')
    (folder / "modeling_x.py").write_text("raise SystemExit('never run')")
    found = problems(bench.open(("{kind: starter}", "{kind: folder, path: mine}")))
    assert [told.split(". ")[0].removeprefix("small.yaml:5: model.source is unusable: ") for told in found] == [
        "models:mine holds Python code (modeling_x.py), which Tunestation never runs; "
        "MiniCPM before version 3 is not carried by transformers",
        "models:mine/config.json asks for Python code (auto_map: modeling_x.py), which Tunestation never runs; "
        "MiniCPM before version 3 is not carried by transformers",
        "models:mine has no weights (model.safetensors or model-*-of-*.safetensors)",
        "models:mine has no tokenizer (tokenizer.json, tokenizer.model, vocab.json)",
    ]


QWEN = {"model_type": "qwen", "kv_channels": 8, "num_attention_heads": 1, "hidden_size": 8, "seq_length": 128, "use_logn_attn": True}


def test_texts_longer_than_a_converted_model_computes_rightly_are_told(bench):
    folder = bench.folder / "home" / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(QWEN))
    told = [text for text in problems(bench.open(("{kind: starter}", "{kind: folder, path: mine}"))) if "max_tokens" in text]
    assert len(told) == 1 and "train.max_tokens is 2048, but the converted model equals the original up to 128 tokens only" in told[0]
    assert "log-n attention" in told[0] and told[0].endswith("Set it to 128 or less.")


def test_a_four_bit_base_of_experts_is_refused_with_the_line_of_the_method(bench):
    mixture = ("{kind: starter}", "{kind: hub, repo: mistralai/Mixtral-8x7B-v0.1}")
    check_settings(bench.open(mixture, ("  epochs: 1", "  method: lora")))
    (told,) = problems(bench.open(mixture, ("  epochs: 1", "  method: qlora")))
    assert "train.method is 'qlora', but the model is a mixture of experts: most of its weights are 3-d parameters" in told
    assert told.startswith("small.yaml:12: ") and "Set it to 'lora'" in told


def test_the_catalogue_tells_of_too_long_texts_before_anything_is_fetched(bench):
    longer = ("  epochs: 1", "  max_tokens: 9000")
    (told,) = problems(bench.open(("{kind: starter}", "{kind: hub, repo: Qwen/Qwen-7B-Chat}"), longer))
    assert told.startswith("small.yaml:12: train.max_tokens is 9000, but the converted model equals the original up to 8192 tokens only")


def test_a_missing_model_folder_is_told(bench):
    (told,) = problems(bench.open(("{kind: starter}", "{kind: folder, path: mine}")))
    assert told.startswith("small.yaml:5: there is no model folder 'mine'. It was looked for in ")


def test_a_step_that_this_machine_s_processes_cannot_share_is_told(bench, monkeypatch):
    monkeypatch.setenv("TUNE_PROCESSES", "3")
    assert problems(bench.open()) == [
        "small.yaml:11: train.global_batch_size 16 cannot be shared by 3 process(es) with micro batches of 1. "
        "Change runtime.micro_batch_size, or set TUNE_PROCESSES."
    ]


@pytest.mark.parametrize(
    ("gpus", "batch", "micro", "processes"), [(0, 16, 1, 1), (1, 2, 2, 1), (2, 2, 2, 1), (8, 16, 1, 8), (8, 12, 2, 6), (3, 4, 1, 2)]
)
def test_as_many_gpus_are_used_as_can_share_a_step_evenly(bench, monkeypatch, gpus, batch, micro, processes):
    monkeypatch.setattr("tunestation.pipeline.machine.gpus", lambda: ("Card, 1",) * gpus)
    work = bench.open(sets=(f"train.global_batch_size={batch}", f"runtime.micro_batch_size={micro}"))
    assert work.processes == processes
    assert list(problems_of_settings(work)) == []


def problems_of_settings(work) -> tuple:
    try:
        check_settings(work)
    except InputError as error:
        return error.problems
    return ()


def test_a_deepspeed_configuration_that_contradicts_the_recipe_is_told_with_its_line(bench):
    (bench.recipes / "ds.json").write_text('{"zero_optimization": {"stage": 3}, "gradient_accumulation_steps": 8, "optimizer": {}}')
    own = ("evaluate:", "runtime:\n  deepspeed_config: ds.json\nevaluate:")
    assert [told.split(" Change")[0] for told in problems(bench.open(own))] == [
        "small.yaml:15: runtime.deepspeed_config (ds.json): 'optimizer' is set, but the recipe decides it (section train).",
        "small.yaml:15: runtime.deepspeed_config (ds.json): gradient_accumulation_steps is 8, but the recipe makes it 16.",
        "small.yaml:15: runtime.deepspeed_config (ds.json): zero_optimization.stage is 3, but runtime.zero_stage is 2.",
    ]
    (bench.recipes / "ds.json").unlink()
    assert problems(bench.open(own)) == [
        "small.yaml:15: runtime.deepspeed_config (ds.json): there is no such DeepSpeed configuration. It is looked for beside the recipe."
    ]


def test_what_is_on_a_hub_or_the_web_is_named_as_not_fetched_and_is_no_problem(bench, capsys):
    web = f"      repeat: 2\n    - source: {{kind: url, url: 'https://example.org/x.jsonl', sha256: {'a' * 64}}}"
    path = bench.recipe(("{kind: starter}", "{kind: hub, repo: a/b}"), ("      repeat: 2", web))
    app.check(str(path))
    assert capsys.readouterr().out.splitlines()[1:] == [
        "not fetched yet, so not checked: model huggingface:a/b@main",
        "not fetched yet, so not checked: https://example.org/x.jsonl",
        f"{path}: no problems.",
    ]
    assert not_fetched(bench.open()) == []


def test_a_run_is_refused_before_it_starts_for_what_reads_no_rows(bench):
    path = bench.recipe(("chatml", "chatmll"))
    with pytest.raises(InputError, match=r"small.yaml:10: template 'chatmll' is not known."):
        app.reproduce(str(path))
    assert not (bench.folder / "home" / "runs").exists()


def test_a_missing_file_stops_every_other_task(bench):
    path = bench.recipe(("rows.jsonl", "gone.jsonl"))
    for task in (app.status, app.reproduce, app.verify):
        with pytest.raises(InputError, match=r"small.yaml:8: there is no file 'gone.jsonl'."):
            task(str(path))


def test_a_run_volume_that_takes_no_files_is_told_with_the_way_out(bench, monkeypatch):
    (bench.folder / "file").write_text("")
    monkeypatch.setenv("TUNE_RUNS", str(bench.folder / "file" / "runs"))
    with pytest.raises(TunestationError, match=r"nothing can be written to .*file/runs/small \(Not a directory\)") as caught:
        app.reproduce(str(bench.recipe()))
    assert caught.value.exit_code == 1
