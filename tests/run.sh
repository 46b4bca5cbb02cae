#!/usr/bin/env bash
# All checks of a clean checkout: format, lint, types, tests. `bash tests/run.sh slow` adds those that take minutes,
# `bash tests/run.sh vllm` runs those of the vLLM engine in an environment of their own; any other words go to pytest:
# `bash tests/run.sh tests/unit -k ppo`.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
if [ "${1:-}" = vllm ]; then
  source tests/vllm/environment.sh
  exec .venv-vllm/bin/python -m pytest -q tests/vllm --durations=10 "${@:2}"
fi
source jobs/environment.sh
# The service is tested on a real PostgreSQL server.
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq postgresql; } >&2
# The pages are tested in Debian's Chromium.
command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium; } >&2
bin=.venv/bin
if [ $# -eq 0 ] || [ "$1" = slow ]; then
  $bin/ruff check . && $bin/ruff format --check . && $bin/mypy
fi
if [ $# -eq 0 ]; then
  exec $bin/python -m pytest -q -m "not slow and not gpu" --durations=10
elif [ "$1" = slow ]; then
  exec $bin/python -m pytest -q -m "not gpu" --durations=10
fi
exec $bin/python -m pytest -q "$@"
