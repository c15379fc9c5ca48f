# shellcheck shell=bash
# What the sbatch files and node.sh share; they source it: checks, the environment of a job, and how it ends.

# A task's SLURM_JOB_ID may be the number of its array, and stand for all tasks.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}

fail() {
    echo "clusters/slurm: $*" >&2
    exit 2
}

# Check the arguments and the environment, and set what every process of the job needs.
prepare() {
    trap stop TERM
    (($#)) || fail "name a job file, as in: sbatch clusters/slurm/one-node.sbatch jobs/imagenette.toml"
    read_arguments "$@"
    if [[ -n ${VLCP_IMAGE:-} ]]; then
        [[ -r $VLCP_IMAGE ]] || fail "VLCP_IMAGE=$VLCP_IMAGE: $(hostname) cannot read it; build it from" \
            "clusters/slurm/apptainer.def in a folder that all nodes share"
        command -v apptainer >/dev/null || fail "VLCP_IMAGE is set, and $(hostname) has no command apptainer: load" \
            "its module before sbatch, or unset VLCP_IMAGE and activate an environment"
        export PYTHONNOUSERSITE=1 # Apptainer mounts the home folder, with the packages of pip install --user
    else
        command -v vlcp-ray >/dev/null || fail "$(hostname) has no command vlcp-ray: activate the environment, which" \
            "all nodes must see, before sbatch (source .venv/bin/activate), or set VLCP_IMAGE"
    fi
    export HF_HUB_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0 # compute nodes do not reach the internet
    unset RAY_ADDRESS                                 # of the shell that called sbatch
    # Ray would take 30 % of the node's memory for its objects, of which the allocation is a part.
    if ((${SLURM_MEM_PER_NODE:-0})); then
        export RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES=$((SLURM_MEM_PER_NODE * 1024 * 1024 * 3 / 10))
    fi
    use_node "v$SLURM_JOB_ID"
}

# Set `arguments`. A word @FILE stands for the words of line N of FILE in task N of an array; comments do not count.
read_arguments() {
    local word line words
    arguments=()
    for word in "$@"; do
        if [[ $word != @* ]]; then
            arguments+=("$word")
            continue
        fi
        [[ -r ${word#@} ]] || fail "$word: cannot read ${word#@} in $PWD"
        [[ -n ${SLURM_ARRAY_TASK_ID:-} ]] || fail "$word: say which of its lines to run, as in: sbatch --array=1-4"
        line=$(sed -E '/^[[:space:]]*(#|$)/d' "${word#@}" | sed -n "${SLURM_ARRAY_TASK_ID}p")
        [[ -n $line ]] || fail "$word: it has no line $SLURM_ARRAY_TASK_ID; name others in sbatch --array"
        read -ra words <<<"$line"
        arguments+=("${words[@]}")
    done
    if [[ -n ${SLURM_ARRAY_TASK_ID:-} && "$*" != *@* ]]; then
        fail "all tasks of the array would run the same job: name a file of lines, as in @clusters/slurm/array.txt"
    fi
}

# Make the folder named $1 on this node's disk, deleted at the end, and use no GPU but those of the allocation.
use_node() {
    local folder=${VLCP_LOCAL:-/tmp}/$1
    # Ray's sockets have up to 70 characters below it, and at most 107 in all.
    ((${#folder} <= 36)) || fail "VLCP_LOCAL=${VLCP_LOCAL:-/tmp}: $folder has more than 36 characters, too many for" \
        "Ray's sockets; set a shorter path on the node's disk"
    rm -rf "$folder" || true # of an attempt that Slurm has killed; mkdir says what is wrong with one of another user
    mkdir -m 0700 "$folder" || fail "VLCP_LOCAL=${VLCP_LOCAL:-/tmp}: cannot make $folder on $(hostname); set a folder" \
        "of the node's disk in which you may write"
    leftovers=("$folder")
    trap 'rm -rf "${leftovers[@]}"' EXIT
    export TMPDIR=$folder RAY_TMPDIR=$folder
    [[ -n ${SLURM_JOB_GPUS:-}${SLURM_STEP_GPUS:-}${SLURM_GPUS_ON_NODE:-} ]] || export CUDA_VISIBLE_DEVICES=""
    ulimit -Sn "$(ulimit -Hn)" || true # Ray opens many files
}

# Replace this shell, which is a subshell, by a command of the image or of the active environment.
in_environment() {
    if [[ -n ${VLCP_IMAGE:-} ]]; then
        exec apptainer exec --nv --bind "$PWD,$TMPDIR" "$VLCP_IMAGE" "$@"
    fi
    exec "$@"
}

# Run the job, and end with its exit code.
run_job() {
    (in_environment vlcp-ray run "${arguments[@]}") &
    wait_for_driver $!
    stop_nodes
    exit "$code"
}

# Wait for the process $1 and set `code`. Where Ray ends on all nodes, it is ended too.
wait_for_driver() {
    driver=$1 code=0
    if [[ -n ${nodes:-} ]]; then
        (
            while kill -0 "$nodes" 2>/dev/null; do sleep 2; done
            echo "clusters/slurm: Ray has ended on all nodes; the reason is above" >&2
            kill -TERM "$driver"
        ) &
        watcher=$!
    fi
    wait "$driver" || code=$?
    [[ -z ${watcher:-} ]] || kill "$watcher" 2>/dev/null || true
}

# End Ray on all nodes, where many-nodes.sbatch has started it. A signal to srun would kill it there.
stop_nodes() {
    if [[ -n ${nodes:-} ]]; then
        scancel --signal=TERM "$job.0" || true
        wait_at_most 25 "$nodes"
    fi
}

# Wait for a process of this shell for $1 seconds, and kill it if it is still there.
wait_at_most() {
    local second
    for ((second = 0; second < $1; second++)); do
        kill -0 "$2" 2>/dev/null || return 0
        sleep 1
    done
    kill -KILL "$2" 2>/dev/null || true
}

# On SIGTERM: let the run end in order, which frees its artifacts for the next one, and queue the job again.
stop() {
    trap '' TERM
    echo "clusters/slurm: SIGTERM: the run stops"
    code=143
    [[ -z ${watcher:-} ]] || kill "$watcher" 2>/dev/null || true
    if [[ -n ${driver:-} ]]; then
        kill -TERM "$driver" 2>/dev/null || true
        wait_at_most 80 "$driver"
        code=0
        wait "$driver" || code=$?
    fi
    stop_nodes
    ((code)) || exit 0 # it had just ended
    # After scancel, which sends SIGTERM too, the state is another one.
    if [[ $(squeue --noheader --format=%T --jobs="$job") == RUNNING ]]; then
        echo "clusters/slurm: its time is over: job $job is queued again, and resumes"
        scontrol requeue "$job" || echo "clusters/slurm: job $job is not queued again; the same sbatch resumes it" >&2
    fi
    exit "$code"
}

# Wait until Ray's head answers.
wait_for_head() {
    local second
    for ((second = 0; second < 300; second++)); do
        (: <"/dev/tcp/${VLCP_HEAD%:*}/${VLCP_HEAD#*:}") 2>/dev/null && return
        sleep 1
    done
    fail "$(hostname) cannot reach Ray's head at $VLCP_HEAD within 5 minutes: if it has started (its log is above)," \
        "the ports between the nodes are closed"
}
