"""What the page's handlers do when a person is quicker than the page, without a browser."""

import asyncio
from types import SimpleNamespace

import gradio as gr
import pytest

from tunestation.chat.handlers import Handlers
from tunestation.chat.page import _layout
from tunestation.chat.parts import new_browser
from tunestation.chat.talks import Shelf, Talk, Votes
from tunestation.recipe.schema import Generation


@pytest.fixture
def page(alone, tmp_path):
    """Handlers of a page, and what a window of it gives them; answers have 5 tokens."""
    generation = Generation(temperature=0, max_new_tokens=5)
    handlers = Handlers(alone, "", Shelf(tmp_path), Votes(tmp_path / "votes.jsonl"))
    with gr.Blocks():
        handlers.parts = _layout(alone, "own", "Own", "", generation, [])
    talk = Talk()
    values = (talk, new_browser(), False, "en", "", *dict(generation).values())
    return handlers, talk, lambda text: handlers.ask(SimpleNamespace(session_hash="window"), text, *values)


async def last_word(handlers, asking):
    """Run until the box is open again; the handler itself has not ended."""
    async for changes in asking:
        if getattr(changes.get(handlers.parts.box), "interactive", False):
            return


def test_a_question_that_comes_while_another_is_being_answered_is_left_out(page):
    handlers, talk, ask = page

    async def both():
        first = ask("Hi")
        await anext(first)
        assert await anext(ask("Again")) == gr.skip()
        await last_word(handlers, first)
        await first.aclose()

    asyncio.run(both())
    assert [turn.question for turn in talk.turns] == ["Hi"]


def test_a_question_that_comes_with_the_last_word_of_an_answer_waits_for_its_end(page):
    handlers, talk, ask = page

    async def both():
        first = ask("Hi")
        await last_word(handlers, first)
        second = ask("Again")
        begun = asyncio.ensure_future(anext(second))
        await asyncio.sleep(0)
        await first.aclose()
        assert handlers.parts.box in await begun
        await last_word(handlers, second)
        await second.aclose()

    asyncio.run(both())
    assert [turn.question for turn in talk.turns] == ["Hi", "Again"]
    assert all(turn.tuned for turn in talk.turns)
