#!/usr/bin/env bash
# From a clean checkout to a trained policy and its report, on a machine without a GPU.
# Needs Python 3.11 or newer with venv, pip and a C compiler. Extra words are passed on: `bash jobs/quickstart.sh steps=40`.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE # Ray starts twice as fast from cached bytecode
source jobs/environment.sh
run="runs/quickstart-$(date +%Y%m%d-%H%M%S)"
.venv/bin/omr-ray train configs/atelier.yaml --out "$run" "$@"
