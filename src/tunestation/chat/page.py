"""The chat page: Gradio on this machine, nothing from anywhere else."""

from __future__ import annotations

import errno
import html
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from itertools import pairwise

import gradio as gr

from tunestation.chat.engine import Engine
from tunestation.errors import InputError, TunestationError
from tunestation.recipe.schema import Generation

# Fonts of the system: the page must look right without a network, and show Chinese.
_SANS = ("ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Consolas", "DejaVu Sans Mono", "Noto Sans Mono CJK SC", "monospace")
_CSS = """
.gradio-container { width: 100% !important; max-width: 900px !important; margin: 0 auto !important; }
.gradio-container .main, .gradio-container .wrap { width: 100%; }
#conversation { min-height: 320px; }
#conversation .placeholder { text-align: center; }
#loaded { opacity: 0.7; font-size: 0.85em; text-align: center; }
"""


def build_page(engine: Engine, title: str, system: str | None, generation: Generation, examples: list[str]) -> gr.Blocks:
    """The page with its conversation, examples and settings; `serve` shows it. Its API has one endpoint, /chat."""
    return gr.ChatInterface(
        _answerer(engine, generation),
        title=html.escape(title),
        description=f"<div id='loaded'>{html.escape(engine.summary())}</div>",
        chatbot=_conversation(title, bool(examples)),
        textbox=gr.Textbox(placeholder="Type a message, and press Enter", show_label=False, submit_btn=True, stop_btn=True, autofocus=True),
        additional_inputs=_settings(engine, system, generation),
        additional_inputs_accordion=gr.Accordion("Settings", open=False),
        examples=[[example] for example in examples],
        api_name="chat",
        validator=lambda message: gr.validate(bool(message.strip()), "Type a message first."),
        analytics_enabled=False,
        fill_height=True,
    )


def _conversation(title: str, has_examples: bool) -> gr.Chatbot:
    invitation = "Ask something, or choose a question below." if has_examples else "Ask something."
    return gr.Chatbot(
        show_label=False,
        elem_id="conversation",
        placeholder=f"<h3>{html.escape(title)}</h3>{invitation}",
        buttons=["copy"],
        layout="bubble",
        scale=1,
    )


def _settings(engine: Engine, system: str | None, generation: Generation) -> list:
    longest = max(engine.context // 2, 1)
    hottest = max(2, generation.temperature)
    return [
        gr.Textbox(system or "", label="System text", lines=2, info="Comes before the conversation; may be empty."),
        gr.Slider(0, hottest, generation.temperature, step=0.01, label="Temperature", info="0 always takes the likeliest word."),
        gr.Slider(1, longest, min(generation.max_new_tokens, longest), step=1, label="Longest answer", info="In tokens."),
    ]


def _answerer(engine: Engine, generation: Generation) -> Callable[..., Iterator[str]]:
    def chat(message: str, history: list[dict], system: str, temperature: float, max_new_tokens: int) -> Iterator[str]:
        """Answer `message` after `history`; yields the whole text so far."""
        chosen = generation.model_copy(update={"temperature": float(temperature), "max_new_tokens": int(max_new_tokens)})
        try:
            messages, dropped = engine.fit(to_messages(message, history, system), chosen.max_new_tokens)
            if dropped:
                gr.Info(f"The conversation is long: the model no longer sees its first {dropped} exchanges.")
            if (yield from engine.reply(messages, chosen)) == "length":
                gr.Info("The answer was cut at its longest length; see Settings.")
        except TunestationError as error:
            _show_error(str(error))
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            _show_error(f"{type(error).__name__}: {error}")

    return chat


def _show_error(sentence: str) -> None:
    # Not gr.Error, which covers the conversation with the word "Error".
    gr.Warning(html.escape(f"The model could not answer. {sentence}"), duration=None)


def to_messages(message: str, history: list[dict], system: str) -> list[dict]:
    """A conversation as the chat template wants it. Questions that got no answer (stopped, failed) are left out."""
    messages = [{"role": "system", "content": system}] if system.strip() else []
    for question, answer in pairwise(history):
        if (question["role"], answer["role"]) == ("user", "assistant"):
            messages += [{"role": entry["role"], "content": _text(entry["content"])} for entry in (question, answer)]
    return [*messages, {"role": "user", "content": message}]


def _text(content: str | list[dict]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def check_port(port: int, host: str = "127.0.0.1") -> None:
    """Raise InputError unless `port` can be listened on: asked before the model is loaded, which takes long."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            trouble = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise InputError(f"port {port} {trouble}; give another with --port") from error


def serve(page: gr.Blocks, name: str, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Show `page` until SIGINT or SIGTERM. Prints one line when it is ready. Raises InputError when the port is in use."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    check_port(port, host)
    page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        inbrowser=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        theme=gr.themes.Default(primary_hue="blue", secondary_hue="blue", neutral_hue="slate", font=_SANS, font_mono=_MONO),
        css=_CSS,
    )
    print(f"Chat with {name} at http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}  (Ctrl-C stops it)", flush=True)
    stop.wait()
    page.close(verbose=False)
