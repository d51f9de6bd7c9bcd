"""What the chat process is asked to do."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from tunestation.chat.main import ChatJob
from tunestation.settings import child_environment


def test_a_job_is_read_from_json_with_the_recipe_s_generation_defaults():
    job = ChatJob.model_validate_json('{"action": "ask", "model": "m", "title": "t", "prompts": ["a", "b"]}')
    assert (job.prompts, job.port, job.generation.temperature) == (("a", "b"), 7860, 0.1)


def test_a_job_with_an_unknown_key_or_an_impossible_port_is_refused():
    with pytest.raises(ValidationError, match="question"):
        ChatJob.model_validate_json('{"action": "ask", "model": "m", "title": "t", "question": "?"}')
    with pytest.raises(ValidationError, match="port"):
        ChatJob.model_validate_json('{"action": "page", "model": "m", "title": "t", "port": 70000}')


def test_nothing_heavy_is_imported_before_the_job_is_read():
    loaded = "import sys, tunestation.chat.main; print([name for name in ('torch', 'transformers', 'gradio') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", loaded], env=child_environment({}), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
