"""The API as OpenAI's own client package meets it."""

import asyncio
import json
import socket

import httpx
import openai
import pytest
from chatting import GREEDY, QUESTIONS, UNHURRIED, Served, ask, expected, idle
from station import wait_until

from tunestation.chat.api import build_api
from tunestation.chat.engine import Engine
from tunestation.chat.guard import Guard

PASSWORD = "correct horse"
NEVER_ENDS = {"max_tokens": 8000}


def serve(engine, password=None):
    return Served(Guard(build_api(engine, "tiny", GREEDY), password))


@pytest.fixture(scope="module")
def served(engine):
    served = serve(engine)
    yield served
    served.close()


@pytest.fixture(scope="module")
def client(served):
    return served.client()


@pytest.fixture(scope="module")
def endless(endless_pair):
    """An engine whose answers end only when they are cut: two at a time, one may wait."""
    engine = Engine(endless_pair, parallel=2, waiting=1)
    served = serve(engine)
    served.engine = engine
    yield served
    served.close()
    engine.close()


def create(client, text="Hi", **options):
    return client.chat.completions.create(**{"model": "tiny", "messages": ask(text)} | options)


def test_an_answer_counts_its_tokens_and_says_why_it_ended(client, engine):
    answer = create(client, "What is your name?", max_tokens=12)
    assert answer.choices[0].message.content == expected(engine, "What is your name?", tokens=12)
    assert (answer.model, answer.choices[0].finish_reason) == ("tiny", "length")
    prompt = len(engine.tokenizer.apply_chat_template(ask("What is your name?"), add_generation_prompt=True, return_dict=False))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (prompt, 12, prompt + 12)


def test_a_streamed_answer_is_the_same_in_pieces_with_its_cost_on_demand(client, engine):
    chunks = list(create(client, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == expected(engine, "Hi")
    assert len(pieces) > 3
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 20
    assert not any(chunk.usage for chunk in create(client, stream=True))


def test_both_models_are_listed_and_the_untuned_one_answers_without_the_adapter(client, engine):
    assert [model.id for model in client.models.list()] == ["tiny", "tiny-base"]
    assert client.models.retrieve("tiny-base").owned_by == "tunestation"
    assert create(client, model="tiny-base").choices[0].message.content == expected(engine, "Hi", base=True)


def test_stop_seed_and_sampling_settings_reach_the_model(client, engine):
    text = expected(engine, "Hi")
    assert create(client, stop=[text[5:8]]).choices[0].message.content == text[: text.index(text[5:8])]
    first, again, other = (
        create(client, temperature=1.5, seed=seed, extra_body={"top_k": 100}).choices[0].message.content for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_conversation_of_parts_and_developer_texts_is_the_conversation_of_plain_ones(client):
    hi = {"role": "user", "content": [{"type": "text", "text": "Hi"}], "type": "text"}
    parts = [{"role": "developer", "content": "You are kind."}, hi]
    plain = create(client, messages=ask("Hi", "You are kind.")).choices[0].message.content
    assert create(client, messages=parts).choices[0].message.content == plain != create(client).choices[0].message.content


def test_concurrent_requests_are_each_answered_as_if_alone(served, engine):
    async def everyone():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", http_client=httpx.AsyncClient(**UNHURRIED)) as client:
            return await asyncio.gather(*(create(client, question) for question in QUESTIONS * 10))

    answers = [answer.choices[0].message.content for answer in asyncio.run(everyone())]
    assert answers == [expected(engine, question) for question in QUESTIONS] * 10


PICTURE = {"type": "image_url", "image_url": {"url": "data:,"}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"temperature": -1}, "temperature: Input should be greater than or equal to 0"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools: is not served here"),
        ({"n": 2}, "n: Input should be 1"),
        ({"seed": 2**64}, "seed: Input should be less than 18446744073709551616"),
        ({"seed": -(2**63) - 1}, "seed: Input should be greater than or equal to -9223372036854775808"),
        ({"extra_body": {"repetition_penalty": 1e-300}}, "repetition_penalty: Input should be greater than or equal to 0.01"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "content.0.type: Input should be 'text'",
        ),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "The last message must be the user's"),
    ],
)
def test_what_is_not_served_is_refused_by_name(client, options, message):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as raised:
            create(client, stream=stream, **options)
        assert message in raised.value.message
        assert raised.value.type == "invalid_request_error"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", '"hot"', "[]", "-1"])
@pytest.mark.parametrize("name", ["temperature", "top_p", "repetition_penalty", "seed", "max_tokens"])
def test_what_is_no_such_number_is_refused_by_name(served, name, value):
    if (name, value) == ("seed", "-1"):
        return
    body = f'{{"model": "tiny", "messages": [{{"role": "user", "content": "Hi"}}], "{name}": {value}}}'
    answer = httpx.post(f"{served.url}/v1/chat/completions", content=body, headers={"content-type": "application/json"}, **UNHURRIED)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


def test_a_body_that_is_no_json_is_told(served):
    answer = httpx.post(f"{served.url}/v1/chat/completions", content="{bad", headers={"content-type": "application/json"}, **UNHURRIED)
    found = answer.json()["error"]
    assert (answer.status_code, found["param"]) == (400, None)
    assert found["message"].startswith("The body is not JSON: ")


@pytest.mark.parametrize("name", ["content", "stop"])
def test_half_a_character_is_refused_by_name(served, name):
    body = {"model": "tiny", "messages": ask("Hi \ud83d" if name == "content" else "Hi"), "stop": "\ude00" if name == "stop" else None}
    answer = httpx.post(
        f"{served.url}/v1/chat/completions", content=json.dumps(body), headers={"content-type": "application/json"}, **UNHURRIED
    )
    assert answer.status_code == 400
    assert "is half of a surrogate pair" in answer.json()["error"]["message"]


def test_the_smallest_and_largest_seeds_and_temperatures_are_answered(client, engine):
    for seed in (-(2**63), 2**64 - 1):
        assert create(client, seed=seed, temperature=1)
    for settings in ({"temperature": 5e-324}, {"temperature": 1e-40}, {"temperature": 1, "top_p": 5e-324}, {"temperature": 1e-5}):
        assert create(client, **settings).choices[0].message.content == expected(engine, "Hi")


def test_a_conversation_longer_than_the_context_has_openai_s_code(client):
    with pytest.raises(openai.BadRequestError, match="the model takes 512") as raised:
        create(client, "legs " * 600)
    assert raised.value.code == "context_length_exceeded"


def test_an_unknown_model_or_path_is_not_found(client, served):
    with pytest.raises(openai.NotFoundError, match="There is no model 'gpt' here, but: tiny, tiny-base") as raised:
        create(client, model="gpt")
    assert raised.value.code == "model_not_found"
    assert httpx.get(f"{served.url}/v1/embeddings", **UNHURRIED).json()["error"]["type"] == "invalid_request_error"


def test_an_answer_ends_when_its_client_leaves(endless):
    body = json.dumps({"model": "tiny", "messages": ask("Hi"), **NEVER_ENDS}).encode()
    host, port = endless.url.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head.encode() + body)
        wait_until(lambda: endless.engine.scheduler.load() == (1, 0))
    idle(endless.engine)
    with httpx.Client(**UNHURRIED) as client:
        asked = {"content": body.replace(b"{", b'{"stream": true, ', 1), "headers": {"content-type": "application/json"}}
        with client.stream("POST", f"{endless.url}/v1/chat/completions", **asked) as answer:
            assert next(answer.iter_text()).startswith("data: ")
    idle(endless.engine)


def test_a_question_whose_client_has_left_waits_no_longer(endless):
    running = [create(endless.client(), stream=True, **NEVER_ENDS) for _ in range(2)]
    for stream in running:
        next(iter(stream))
    for _ in range(2):
        waiting = create(endless.client(), stream=True, **NEVER_ENDS)
        wait_until(lambda: endless.engine.scheduler.load() == (2, 1))
        waiting.close()
        wait_until(lambda: endless.engine.scheduler.load() == (2, 0))
    for stream in running:
        stream.close()
    idle(endless.engine)


def test_a_busy_server_says_so_and_tells_when_to_come_back(endless):
    streams = [create(endless.client(), stream=True, **NEVER_ENDS) for _ in range(3)]
    for stream in streams:
        next(iter(stream))
    with pytest.raises(openai.RateLimitError, match="questions are waiting already") as raised:
        create(endless.client())
    assert int(raised.value.response.headers["retry-after"]) > 0
    wanted = {"status": "ok", "running": 2, "waiting": 1}
    wait_until(lambda: wanted.items() <= httpx.get(f"{endless.url}/health", **UNHURRIED).json().items())
    for stream in streams:
        stream.close()
    idle(endless.engine)


def test_a_failing_model_is_told_in_openai_s_shape_and_by_health(endless, capsys):
    def fail(*_):
        raise RuntimeError("device-side assert")

    hook = endless.engine.model.register_forward_pre_hook(fail)
    with pytest.raises(openai.InternalServerError, match="The model failed: RuntimeError: device-side assert"):
        create(endless.client())
    with pytest.raises(openai.APIError, match="device-side assert"):
        list(create(endless.client(), stream=True))
    assert httpx.get(f"{endless.url}/health", **UNHURRIED).status_code == 503
    hook.remove()
    assert create(endless.client(), max_tokens=3)
    assert httpx.get(f"{endless.url}/health", **UNHURRIED).status_code == 200
    capsys.readouterr()


def test_with_a_password_every_path_of_the_api_wants_it_as_bearer_token(engine):
    served = serve(engine, PASSWORD)
    try:
        assert create(served.client(PASSWORD)).choices[0].message.content == expected(engine, "Hi")
        for wrong in ("none", PASSWORD[:-1]):
            with pytest.raises(openai.AuthenticationError) as raised:
                create(served.client(wrong))
            assert raised.value.code == "invalid_api_key"
            with pytest.raises(openai.AuthenticationError):
                served.client(wrong).models.list()
        assert httpx.get(f"{served.url}/health", **UNHURRIED).status_code == 200
    finally:
        served.close()


def test_without_a_password_only_this_machine_s_own_names_are_answered(served):
    get = httpx.Client(base_url=served.url, **UNHURRIED).get
    for host, status in (
        ("127.0.0.1", 200),
        ("localhost:8000", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:80", 403),
        ("[", 403),
    ):
        assert get("/v1/models", headers={"host": host}).status_code == status


def test_a_web_page_of_another_site_cannot_make_a_browser_ask(served):
    simple = {"content-type": "text/plain", "origin": "https://evil.example"}
    body = json.dumps({"model": "tiny", "messages": ask("Hi")})
    answer = httpx.post(f"{served.url}/v1/chat/completions", content=body, headers=simple, **UNHURRIED)
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers


def test_a_body_beyond_all_measure_is_not_read(served):
    answer = httpx.post(f"{served.url}/v1/chat/completions", content=b" " * (9 * 2**20), **UNHURRIED)
    assert answer.status_code == 413


def test_a_body_of_unknown_length_is_not_read(served):
    answer = httpx.post(f"{served.url}/v1/chat/completions", content=iter([b"{}"]), **UNHURRIED)
    assert (answer.status_code, "Content-Length" in answer.json()["error"]["message"]) == (411, True)
