"""These tests need vLLM, which the main environment does not have: `bash tests/run.sh vllm`."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("vllm") else ["*"]
