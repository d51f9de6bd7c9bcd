"""The chat page and `ask`: a child process of its own, started with `python -m tunestation.chat.main JOB.json`."""

ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}
"""What the parent sets for that process: it talks to this machine alone.
Gradio asks its own page whether it is up; without NO_PROXY that question could go to a proxy."""
