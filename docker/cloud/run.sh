#!/bin/sh
# Runs $RECIPE on a rented machine, or this one's part of it on several. Called in the checkout by the task files beside this script.
# With $TUNE_KEEP (a mounted bucket, or an fsspec URL) it takes up what an earlier machine left there, and keeps there what is whole.
set -eu
: "${RECIPE:?is the name of the recipe to run}"

nodes=${SKYPILOT_NUM_NODES:-${DSTACK_NODES_NUM:-1}}
if [ "$nodes" -gt 1 ]; then
    first=${DSTACK_MASTER_NODE_IP:-$(echo "${SKYPILOT_NODE_IPS:-}" | head -n 1)}
    export TUNE_NODES="$nodes" TUNE_NODE_RANK="${SKYPILOT_NODE_RANK:-${DSTACK_NODE_RANK:-}}" TUNE_RENDEZVOUS="$first:${TUNE_PORT:-29500}"
fi

make_venv() {
    for version in 3.12 3.13 3.11; do
        if command -v "python$version" >/dev/null; then
            "python$version" -m venv .venv
            return
        fi
    done
    # machines with another Python often have uv, which brings one
    uv venv --quiet --seed --python 3.12 .venv
}
invoke=$(command -v invoke) || {
    [ -x .venv/bin/invoke ] || { make_venv && .venv/bin/pip install --quiet invoke; }
    invoke=.venv/bin/invoke
}
"$invoke" doctor

if [ -n "${TUNE_KEEP:-}" ]; then
    "$invoke" sync "$RECIPE" --source "$TUNE_KEEP"
    "$invoke" sync "$RECIPE" --to "$TUNE_KEEP" --every 60 &
    keeper=$!
fi
code=0
"$invoke" reproduce "$RECIPE" || code=$?
if [ -n "${TUNE_KEEP:-}" ]; then
    kill "$keeper"
    wait "$keeper" || true
    "$invoke" sync "$RECIPE" --to "$TUNE_KEEP"
fi
exit "$code"
