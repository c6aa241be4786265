#!/bin/sh
# From nothing to a submission: set up the environment if needed, train the supernet, evaluate the arch list, write the
# submission, score it where there is a truth to score against, and show all that on a page. Run it again after an
# interruption: it resumes.
#
#   sh train_supernet.sh                                   a small supernet on built-in digits, minutes on a CPU
#   IMAGE_DIR=/data/ILSVRC2012 ARCHS=list.json sh train_supernet.sh     the real thing
#
# IMAGE_DIR   folder with train/<class>/ and val/<class>/
# ARCHS       arch list to evaluate [200 sampled archs; built-in digits: 100 that are spread over the space]
# TRUTH       accuracies of nets trained on their own, to score against [built-in digits: the first 100 archs are
#             trained alone, as many at once as there are cores]
# OUTPUT      folder for everything that comes out [output/digits, or output/supernet with IMAGE_DIR]
# GPUS        which GPUs, as nvidia-smi numbers them, such as 3 or 0,1,2,3 [those of CUDA_VISIBLE_DEVICES, where an empty
#             one means the CPU; without it all that nvidia-smi lists]
# PROCESSES   on a CPU: how many processes share the subnets of each training step [1; 2 for the built-in digits without
#             CONFIG or arguments, on Linux with two cores or more]
# PRETRAINED  weights to start from, such as the official resnet48.pdparams
# CONFIG      the training's YAML file [configs/digits.yaml, or configs/ranking.yaml with IMAGE_DIR]
# Relative paths in these are those of the folder that you call this from; what is not there, but in the project's folder,
# is taken from that.
# Arguments go to the training: sh train_supernet.sh --max_epoch 30
# Exit codes: 0 all done, 75 stopped by a signal, 2 an error that one sentence names.

there=$PWD
cd "$(dirname "$0")" || exit 2

# Path $1 of the folder that this was called from, for programs that run in the project's.
absolute() {
    case "$1" in
        "" | /*) printf "%s\n" "$1" ;;
        *)
            if [ "$there" = "$PWD" ] || { [ -e "$1" ] && [ ! -e "$there/$1" ]; }; then
                printf "%s\n" "$1"
            else
                printf "%s\n" "$there/$1"
            fi ;;
    esac
}

IMAGE_DIR=$(absolute "${IMAGE_DIR:-}")
ARCHS=$(absolute "${ARCHS:-}")
TRUTH=$(absolute "${TRUTH:-}")
OUTPUT=$(absolute "${OUTPUT:-}")
PRETRAINED=$(absolute "${PRETRAINED:-}")
CONFIG=$(absolute "${CONFIG:-}")
case "${PYTHON:-}" in
    */*) PYTHON=$(absolute "$PYTHON") ;; # not a name to be looked up
esac
set -- "" "$@" # environment.sh takes a further requirements file as $1
. resnet48/environment.sh
shift

if [ -n "${IMAGE_DIR:-}" ]; then
    OUTPUT=${OUTPUT:-output/supernet}
    CONFIG=${CONFIG:-configs/ranking.yaml}
    SAMPLE="200 --space published"
else
    # As they come: other settings may need more of the subnets than processes exchange.
    if [ -z "${PROCESSES:-}${CONFIG:-}$*" ] && [ "$(uname)" = Linux ] && [ "$(nproc)" -gt 1 ]; then
        PROCESSES=2
    fi
    OUTPUT=${OUTPUT:-output/digits}
    CONFIG=${CONFIG:-configs/digits.yaml}
    SAMPLE="100 --spread --space configs/spaces/digits.yaml"
fi

device=
if [ -n "${GPUS:-}" ]; then
    GPUS=$(echo "$GPUS" | tr -d ' ')
    # All programs see these GPUs only, in nvidia-smi's order, and none falls back to the CPU.
    CUDA_VISIBLE_DEVICES=$GPUS
    CUDA_DEVICE_ORDER=PCI_BUS_ID
    export CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER
    device=gpu
elif [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    GPUS=$(echo "$CUDA_VISIBLE_DEVICES" | tr -d ' ') # the launcher looks its --gpu up among these
elif command -v nvidia-smi >/dev/null 2>&1; then
    GPUS=$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | paste -sd, -)
fi

PYTHONUNBUFFERED=1 # else Paddle's launcher holds lines back where they go to a file
export PYTHONUNBUFFERED

launch() {
    case "${GPUS:-}" in
        *,*) exec "$PYTHON" -m paddle.distributed.launch --gpu "$GPUS" "$@" ;;
        *) exec "$PYTHON" "$@" ;;
    esac
}

alone() {
    exec "$PYTHON" "$@"
}

# A training: as launched, or in processes that share its subnets.
train() {
    if [ -z "${GPUS:-}" ] && [ "${PROCESSES:-1}" != 1 ]; then
        exec "$PYTHON" -m paddle.distributed.launch --log_level ERROR --nproc_per_node "$PROCESSES" \
            train_supernet.py run --share subnets "$@"
    fi
    launch train_supernet.py run "$@"
}

# Run a program, by one of these, and go on only if it ends well. It runs in the background, because a signal
# that this script alone gets, as from `docker stop`, is for the program.
run() {
    "$@" &
    program=$!
    [ -z "$stopped" ] || kill -TERM "$program"
    wait "$program"
    code=$?
    while kill -0 "$program" 2>/dev/null; do # a signal has ended the waiting
        wait "$program"
        code=$?
    done
    # 15 is how Paddle's launcher ends when SIGTERM has stopped the ranks
    if [ -n "$stopped" ] || [ $code -eq 75 ] || [ $code -eq 15 ]; then
        echo "stopped; the same command resumes"
        exit 75
    fi
    [ $code -eq 0 ] || exit $code
}
program=
stopped=
trap 'stopped=yes; [ -z "$program" ] || kill -TERM "$program" 2>/dev/null' HUP INT TERM

step() {
    echo
    echo "== $*"
}

step "training the supernet in $OUTPUT/train"
run train --config "$CONFIG" --save_dir "$OUTPUT/train" ${device:+--device $device} \
    ${IMAGE_DIR:+--image_dir "$IMAGE_DIR"} ${PRETRAINED:+--pretrained "$PRETRAINED"} "$@"
[ -f "$OUTPUT/train/final.pdparams" ] || exit 0 # a dry run

if [ -z "${ARCHS:-}" ]; then
    ARCHS=$OUTPUT/archs.json
    [ -f "$ARCHS" ] || run alone -m resnet48 sample $SAMPLE --output "$ARCHS"
fi
step "evaluating $ARCHS"
run launch eval_supernet.py run --checkpoint "$OUTPUT/train" --archs "$ARCHS" --output "$OUTPUT/submission.json" \
    ${IMAGE_DIR:+--image_dir "$IMAGE_DIR"} ${device:+--device $device}
run alone eval_supernet.py verify --submission "$OUTPUT/submission.json" --archs "$ARCHS" --checkpoint "$OUTPUT/train"

if [ -z "${TRUTH:-}" ] && [ -z "${IMAGE_DIR:-}" ]; then
    TRUTH=$OUTPUT/truth.json
    step "training 100 of these nets on their own, as the truth"
    run alone pretrain.py truth --config configs/digits_standalone.yaml --archs "$ARCHS" --limit 100 --truth "$TRUTH" \
        --save_dir "$OUTPUT/truth"
fi
step "one page of all this"
run alone eval_supernet.py report --output "$OUTPUT/submission.json" --checkpoint "$OUTPUT/train" \
    ${TRUTH:+--truth "$TRUTH"}
picture=
if [ -n "${TRUTH:-}" ]; then # last, so that what came out is what is seen
    step "scoring"
    run alone eval_supernet.py score --submission "$OUTPUT/submission.json" --truth "$TRUTH" \
        --report "$OUTPUT/score.md" --plot "$OUTPUT/score.png"
    picture=", the rankings as a picture: $OUTPUT/score.png"
fi
step "done: $(ls "$OUTPUT" | tr '\n' ' ')in $OUTPUT$picture; to look at in a browser: $OUTPUT/submission.html"
