#!/bin/bash
# Run Ray on one node until SIGTERM. many-nodes.sbatch starts it by srun, once on every node.
set -euo pipefail
source clusters/slurm/job.sh
use_node "v$SLURM_JOB_ID-$SLURM_NODEID"
[[ -z ${VLCP_SHARED:-} || -e $VLCP_SHARED ]] || fail "--root ${VLCP_SHARED%/*}: $(hostname) does not see the folder" \
    "of the first node; name one that all nodes share"
# Ray makes its folder writable for everybody: it lies in one that is not.
options=(--block --temp-dir="$TMPDIR/ray" --num-cpus="$SLURM_CPUS_ON_NODE" --dashboard-agent-listen-port=0
    --min-worker-port=0 --max-worker-port=0) # 0: any free port
if ((SLURM_NODEID == 0)); then
    options+=(--head --node-ip-address="${VLCP_HEAD%:*}" --port="${VLCP_HEAD#*:}" --include-dashboard=false
        --ray-client-server-port="$VLCP_CLIENT_PORT")
else
    wait_for_head
    options+=(--address="$VLCP_HEAD")
fi
(in_environment ray start "${options[@]}") >"$TMPDIR/start.log" 2>&1 &
ray=$! stopped=0 code=0
trap 'stopped=1; kill -TERM "$ray" 2>/dev/null' TERM
wait "$ray" || code=$?
if ((stopped)); then
    wait "$ray" || true
    exit 0
fi
tail -n 30 "$TMPDIR/start.log" >&2
((SLURM_NODEID)) || scancel "$job.0" # the others cannot go on without the head
fail "Ray has ended on $(hostname) with exit code $code"
