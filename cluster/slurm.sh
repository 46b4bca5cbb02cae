#!/usr/bin/env bash
#SBATCH --job-name=omr-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=omr-ray-%j.log
# One Ray over all nodes of the job, the run on its head, and everything is gone when the run ends:
#   sbatch cluster/slurm.sh configs/sd21.yaml --out /shared/runs/sd21 workers.rollout.count=8
# Needs this checkout with its .venv, and the run directory, on a file system that every node sees.
# A job that was requeued goes on from the last checkpoint.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?run this by sbatch from the checkout}"
source .venv/bin/activate

previous='' out=''
for word in "$@"; do
  case "$previous" in --out) out=$word ;; esac
  previous=$word
done
: "${out:?give the run directory: --out DIR}"
if [ -e "$out/config.yaml" ]; then
  set -- "$@" --resume
fi

# Whoever reaches Ray's ports may run code: a token of this job's own, readable by its user alone.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$PWD/.omr-ray-token-$SLURM_JOB_ID
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32))' > "$RAY_AUTH_TOKEN_PATH")
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 OMP_NUM_THREADS=1

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST") # read to its end: a pipe that is closed early would end the job
head=${hosts[0]}
ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs may share a network, not a port

# Starts Ray on every node, runs what is behind -- on the head once all are there, and stops Ray.
srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --kill-on-bad-exit=1 \
  ray symmetric-run --address "$ip:$port" --min-nodes "$SLURM_NNODES" \
  --num-cpus="$SLURM_CPUS_ON_NODE" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats \
  -- python jobs/train.py "$@"
