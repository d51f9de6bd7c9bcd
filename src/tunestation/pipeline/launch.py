"""`python -m tunestation.pipeline.launch LOG ARGUMENTS...`: torch.distributed.run that dies with its parent and writes to a log."""

import sys
from pathlib import Path

from tunestation.pipeline.child import die_with_parent, log_to


def main(arguments: list[str]) -> None:
    """Start the training processes; their own output does not pass through here."""
    die_with_parent()
    from torch.distributed.run import main as run

    log_to(Path(arguments[0]), 2)
    run(arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
