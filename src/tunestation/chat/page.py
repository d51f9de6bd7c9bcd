"""The chat page: how it is laid out, and which handler belongs to what. Nothing on it comes from another machine."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from functools import partial

import gradio as gr
from fastapi import FastAPI

from tunestation.chat.engine import PARALLEL, WAITING, Engine
from tunestation.chat.guard import login
from tunestation.chat.handlers import Handlers
from tunestation.chat.parts import Parts
from tunestation.chat.talks import Shelf, Talk, Votes
from tunestation.chat.words import ENGLISH, WORDS
from tunestation.recipe.schema import Generation

# Fonts of the system: the page must look right without a network, and show Chinese.
_SANS = ("ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Consolas", "DejaVu Sans Mono", "Noto Sans Mono CJK SC", "monospace")
_CSS = r"""
.gradio-container { width: 100% !important; max-width: 1180px !important; margin: 0 auto !important; }
.gradio-container .main, .gradio-container .wrap { width: 100%; }
.gradio-container main.contain { gap: 10px; padding-top: 8px; }
#head { text-align: center; padding: 0; }
#head h1 { margin: 0; font-size: 1.5rem; }
#head p { margin: 0; opacity: 0.65; font-size: 0.8rem; }
#compare { width: fit-content; margin: 0 auto; }
#conversations { gap: 12px; }
#conversations .column { gap: 4px; }
#tuned, #base { height: calc(100vh - 330px) !important; min-height: 260px; }
.status { text-align: right; opacity: 0.65; font-size: 0.8rem; }
.status .html-container { padding: 0 4px; min-height: 1.4em; }
#count { opacity: 0.65; font-size: 0.8rem; text-align: center; }
#settings-button::after { content: "\25B8" / ""; padding-left: 6px; }
.settings-open #settings-button::after { content: "\25BE" / ""; }
body:not(.settings-open) #settings { display: none; }
#talks .wrap { flex-direction: column; flex-wrap: nowrap; align-items: stretch; }
#talks label { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
#talks label input { position: absolute; opacity: 0; }
#talks label:has(input:focus-visible), #settings-button:focus-visible { outline: 2px solid var(--color-accent); }
#talks label.selected { border-color: var(--color-accent); font-weight: 600; }
@media (max-width: 700px) {
    #conversations:has(#base) #tuned, #base { height: 38vh !important; }
}
"""
_DOWNLOAD = """rows => {
    if (!rows) return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([rows], {type: "application/jsonl"}));
    link.download = "conversations.jsonl";
    link.click();
    URL.revokeObjectURL(link.href);
}"""
_UNFOLD = """() => {
    const open = document.body.classList.toggle("settings-open");
    document.getElementById("settings-button").setAttribute("aria-expanded", open);
}"""
_STEPS = {"temperature": 0.01, "top_p": 0.01, "repetition_penalty": 0.01, "top_k": 1, "max_new_tokens": 1}


def add_page(
    app: FastAPI,
    engine: Engine,
    name: str,
    title: str,
    system: str,
    generation: Generation,
    examples: Sequence[str],
    kept: tuple[Shelf, Votes],
    password: str | None,
) -> None:
    """Put the page on `app` at `/`. `name` keys what the browser keeps; with a `password` the page asks for it."""
    handlers = Handlers(engine, system, *kept)
    with gr.Blocks(title=title, analytics_enabled=False, fill_height=True) as page:
        handlers.parts = _layout(engine, name, title, system, generation, examples)
        _connect(page, handlers)
    page.queue(max_size=2 * (PARALLEL + WAITING), default_concurrency_limit=None, api_open=False)
    gr.mount_gradio_app(
        app,
        page,
        "/",
        footer_links=[],
        run_history=False,
        auth=login(password) if password else None,
        show_error=False,
        max_file_size=0,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Default(primary_hue="blue", secondary_hue="blue", neutral_hue="slate", font=_SANS, font_mono=_MONO),
        css=_CSS,
    )


def _layout(engine: Engine, name: str, title: str, system: str, generation: Generation, examples: Sequence[str]) -> Parts:
    hidden = {"visible": False}
    with gr.Sidebar(open=False, width=280):
        new, talks = gr.Button(ENGLISH["new"], variant="primary"), gr.Radio([], label=ENGLISH["conversations"], elem_id="talks")
        export, rows = gr.Button(ENGLISH["export"]), gr.Textbox(**hidden)
        language = gr.Radio([(words["language"], code) for code, words in WORDS.items()], value="en", show_label=False, container=False)
    gr.HTML(f"<h1>{html.escape(title)}</h1><p>{html.escape(engine.summary())}</p>", elem_id="head")
    compare = gr.Checkbox(label=ENGLISH["compare"], visible=engine.has_base, container=False, elem_id="compare")
    with gr.Row(elem_id="conversations"):
        with gr.Column(visible=False, min_width=300) as base_column:
            base = _chat("base", [])
        with gr.Column(min_width=300):
            tuned = _chat("tuned", examples)
    with gr.Row(visible=False) as votes:
        vote_buttons = {better: gr.Button(ENGLISH[f"better_{better}"], size="sm", min_width=80) for better in ("base", "same", "tuned")}
    count = gr.HTML("", visible=False, elem_id="count")
    box = gr.Textbox(
        placeholder=ENGLISH["message"],
        interactive=False,
        show_label=False,
        submit_btn=True,
        stop_btn=False,
        max_lines=10,
        autofocus=True,
        elem_id="box",
    )
    # Not gr.Accordion: it gives its parts their first values once more, a frame after it has shown them for the first time.
    settings_button = gr.Button(ENGLISH["settings"], size="sm", elem_id="settings-button")
    with gr.Group(elem_id="settings"):
        settings = _settings(engine, system, generation)
    return Parts(
        talk=gr.State(Talk()),
        kept=gr.BrowserState(None, storage_key=f"tunestation-{name}", secret=name),
        language=language,
        compare=compare,
        box=box,
        chats={"tuned": tuned[0], "base": base[0]},
        status={"tuned": tuned[1], "base": base[1]},
        base_column=base_column,
        votes=votes,
        count=count,
        talks=talks,
        rows=rows,
        vote_buttons=vote_buttons,
        new=new,
        export=export,
        settings_button=settings_button,
        settings=settings,
    )


def _chat(who: str, examples: Sequence[str]) -> tuple[gr.Chatbot, gr.HTML]:
    chat = gr.Chatbot(
        label=ENGLISH[who],
        elem_id=who,
        examples=[{"text": example} for example in examples],
        buttons=["copy"],
        layout="bubble",
        editable="all" if who == "tuned" else None,
        feedback_options=None,
        allow_file_downloads=False,
        placeholder=ENGLISH["invitation"],
    )
    return chat, gr.HTML("", elem_classes="status")


def _settings(engine: Engine, system: str, generation: Generation) -> dict[str, gr.Component]:
    longest = max(engine.context // 2, 1)
    ranges = {
        "temperature": (0, max(2, generation.temperature)),
        "top_p": (0.01, 1),
        "top_k": (0, max(200, generation.top_k)),
        "repetition_penalty": (min(0.5, generation.repetition_penalty), max(2, generation.repetition_penalty)),
        "max_new_tokens": (1, longest),
    }
    found: dict[str, gr.Component] = {"system": gr.Textbox(system, label=ENGLISH["system"], info=ENGLISH["system_info"], lines=2)}
    for name, value in generation:
        low, high = ranges[name]
        text = {"label": ENGLISH[name], "info": ENGLISH[f"{name}_info"]}
        found[name] = gr.Slider(low, high, min(value, high), step=_STEPS[name], **text)
    return found


def _connect(page: gr.Blocks, handlers: Handlers) -> None:
    parts = handlers.parts
    context = [parts.talk, parts.kept, parts.compare, parts.language, *parts.settings.values()]
    every = [
        *(parts.talk, parts.kept, parts.language, parts.compare, parts.box, *parts.chats.values(), *parts.status.values()),
        *(parts.base_column, parts.votes, parts.count, parts.talks, parts.rows, *parts.vote_buttons.values(), parts.new, parts.export),
        *(parts.settings_button, *parts.settings.values()),
    ]

    def on(event: Callable, handler: Callable, *inputs: gr.Component) -> gr.events.Dependency:
        given = [*inputs, *context]
        # By default the browser drops what is done again before it has heard of the end of the time before.
        return event(handler, given, every, show_progress="hidden", api_visibility="private", trigger_mode="multiple")

    tuned, base = parts.chats["tuned"], parts.chats["base"]
    on(parts.box.submit, handlers.ask, parts.box)
    on(tuned.example_select, handlers.example)
    on(tuned.edit, handlers.edit)
    parts.box.stop(handlers.stop, None, None, queue=False, show_progress="hidden", api_visibility="private")
    for chat in (tuned, base):
        on(chat.retry, handlers.retry)
        on(chat.clear, handlers.clear)
    on(parts.new.click, handlers.new)
    on(parts.talks.input, handlers.open, parts.talks)
    on(parts.compare.input, handlers.switch)
    for better, button in parts.vote_buttons.items():
        on(button.click, partial(handlers.vote, better))
    on(parts.export.click, handlers.export).then(None, parts.rows, None, js=_DOWNLOAD)
    parts.settings_button.click(None, None, None, js=_UNFOLD)
    parts.language.input(
        handlers.translate, parts.language, every, show_progress="hidden", api_visibility="private", trigger_mode="always_last"
    )
    opened = page.load(handlers.greet, None, every, show_progress="hidden", api_visibility="private")
    opened.then(handlers.load, [parts.kept, parts.compare, parts.language], every, show_progress="hidden", api_visibility="private")
    page.unload(handlers.stop)
