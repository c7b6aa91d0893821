# What dist_train.sh and dist_test.sh share, which source this file:  start SCRIPT GPUS [arguments of SCRIPT]
# Over several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT say where the processes meet.
start() {
    local folder where
    folder=$(dirname "$0")
    if [ "${NNODES:-1}" -gt 1 ]; then
        where=(--nnodes "$NNODES" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "${PORT:-29500}")
    else
        where=(--standalone)
    fi
    export PYTHONSAFEPATH=1 # no module of the current folder is run; PYTHONPATH names folders that have some
    exec "${PYTHON:-python}" "$folder/torchrun.py" "${where[@]}" --nproc_per_node "$2" \
        "$folder/$1" "${@:3}" --launcher pytorch
}
