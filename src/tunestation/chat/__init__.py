"""The chat page and `ask`: a child process of its own, started with `python -m tunestation.chat.main JOB.json`."""
