# Sourced: makes or updates .venv from pinned versions. Does nothing if the pins and the project file are unchanged.
stamp=$(cat pyproject.toml cluster/constraints.txt | sha256sum | cut -d' ' -f1)
if [ "$(cat .venv/.stamp 2>/dev/null)" != "$stamp" ]; then
  echo "installing pinned dependencies into .venv (a few minutes the first time)" >&2
  "${PYTHON:-python3}" -m venv .venv
  .venv/bin/pip install --quiet --disable-pip-version-check --constraint cluster/constraints.txt --editable '.[dev]' >&2
  .venv/bin/python -m compileall -q omr_ray >/dev/null
  echo "$stamp" > .venv/.stamp
fi
