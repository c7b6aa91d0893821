#!/usr/bin/env bash
# Evaluate on several GPUs of one machine:  tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
# Without GPUs it starts as many processes on the CPU, over gloo.
# Over several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, the same command on each.
set -euo pipefail
if [ $# -lt 3 ]; then echo "usage: $0 CONFIG CHECKPOINT GPUS [arguments of test.py]" >&2; exit 2; fi
source "$(dirname "$0")/processes.sh"
start test.py "$3" "$1" "$2" "${@:4}"
