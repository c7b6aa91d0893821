#!/usr/bin/env bash
# Train on several GPUs of one machine:  tools/dist_train.sh CONFIG GPUS [arguments of train.py]
# Without GPUs it starts as many processes on the CPU, over gloo.
# Over several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, the same command on each.
set -euo pipefail
if [ $# -lt 2 ]; then echo "usage: $0 CONFIG GPUS [arguments of train.py]" >&2; exit 2; fi
source "$(dirname "$0")/processes.sh"
start train.py "$2" "$1" "${@:3}"
