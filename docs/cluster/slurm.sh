#!/bin/bash
# 5 nodes of 8 GPUs: the first serves vLLM, the others train. `sbatch docs/cluster/slurm.sh RUN`
#SBATCH --job-name=kfh
#SBATCH --nodes=5
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
set -euo pipefail
RUN=${1:?name the folder of the run, on a file system that all nodes see}
MODEL=deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B
mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
SERVER=${NODES[0]}
export MAIN=${NODES[1]} RUN SERVER
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=1800  # seconds that torchrun gives a step to end

srun --nodes=1 --ntasks=1 --nodelist="$SERVER" env VLLM_SERVER_DEV_MODE=1 \
  vllm serve "$MODEL" --host 0.0.0.0 --port 8000 --data-parallel-size 8 \
  --max-model-len 18432 --weight-transfer-config '{"backend": "nccl"}' \
  --logprobs-mode processed_logprobs --max-logprobs -1 &

# 32 GPUs × 4 responses × 8 accumulations are the same 1024 responses a step.
TRAINERS=$(IFS=,; echo "${NODES[*]:1}")
srun --nodes=4 --ntasks=4 --nodelist="$TRAINERS" bash -c '
  resume=$([ -e "$RUN/run.json" ] && echo --resume || true)
  accelerate launch --config_file docs/cluster/nodes.yaml --machine_rank "$SLURM_PROCID" \
    --main_process_ip "$MAIN" --main_process_port 29500 \
    -m kfh train --recipe attnpo-ds-qwen-1.5b --out "$RUN" $resume \
    --set processes=32 --set gradient_accumulation_steps=8 \
    --set vllm_mode=server --set vllm_server_host="$SERVER" --set vllm_server_port=8000 \
    --set vllm_server_timeout=1200'
