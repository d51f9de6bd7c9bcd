#!/bin/sh
# Says on stderr what is wrong with this container, then becomes the command.
set -eu
python -m tunestation.doctor --start >&2
exec "$@"
