#!/usr/bin/env bash
# Evaluate on several GPUs of one machine:  tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
# Without GPUs it starts as many processes on the CPU, over gloo.
# Over several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, the same command on each.
set -euo pipefail
if [ $# -lt 3 ]; then echo "usage: $0 CONFIG CHECKPOINT GPUS [arguments of test.py]" >&2; exit 2; fi
gpus=$3
arguments=("$1" "$2" "${@:4}")
if [ "${NNODES:-1}" -gt 1 ]; then
    where=(--nnodes "$NNODES" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "${PORT:-29500}")
else
    where=(--standalone)
fi
export PYTHONSAFEPATH=1 # no module of the current folder is run; PYTHONPATH names folders that have some
exec "${PYTHON:-python}" "$(dirname "$0")/torchrun.py" "${where[@]}" --nproc_per_node "$gpus" \
    "$(dirname "$0")/test.py" "${arguments[@]}" --launcher pytorch
