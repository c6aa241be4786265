# Sourced by train_supernet.sh and tests/run.sh from the project's folder. Sets PYTHON to an interpreter that has what
# the requirements name, making one in ./.venv if need be. $1, if given: a further requirements file.
# Yours to set: PYTHON (use this interpreter as it is), REQUIREMENTS (instead of choosing by whether a GPU is there).

fail() {
    echo "error: $*" >&2
    exit 2
}

# Whether interpreter $1 has all packages; looks them up without importing, which would take seconds.
has_packages() {
    "$1" -c 'import sys
from importlib.util import find_spec
names = sys.argv[1:] + ["paddleslim"] * (sys.version_info < (3, 13))
sys.exit(any(find_spec(name) is None for name in names))' paddle numpy scipy PIL sklearn matplotlib yaml tqdm \
        $extra_modules 2>/dev/null
}

# Set `base` to a Python of the PATH that has wheels of Paddle: of version 3.10 to 3.$1, python3 itself where it will do.
find_base() {
    for name in python3 python3.13 python3.12 python3.11 python3.10; do
        base=$(command -v $name) || continue
        "$base" -c 'import sys
sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, int(sys.argv[1])))' "$1" 2>/dev/null && return
    done
    fail "Python 3.10 to 3.$1 is needed, for which $REQUIREMENTS can be installed; the PATH has none of them"
}

set_up() {
    newest=13
    if [ -z "${REQUIREMENTS:-}" ]; then
        REQUIREMENTS=requirements-cpu.txt
        if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then
            REQUIREMENTS=requirements.txt
            newest=12 # of the public index's builds of paddlepaddle-gpu
        fi
    fi
    find_base $newest
    echo "setting up .venv from $REQUIREMENTS (once; some minutes)"
    "$base" -m venv .venv || fail "cannot make a virtual environment in .venv (on Debian: apt-get install python3-venv)"
    .venv/bin/python -m pip install --quiet -r "$REQUIREMENTS" ${1:+-r "$1"} ||
        fail "pip could not install $REQUIREMENTS${1:+ and $1}; see its message above"
    has_packages .venv/bin/python || fail "packages are missing in .venv although pip succeeded; remove .venv and retry"
    PYTHON=$PWD/.venv/bin/python
}

extra_modules=
if [ -n "${1:-}" ]; then
    extra_modules="pytest xdist hypothesis"
fi
if [ -n "${PYTHON:-}" ]; then
    has_packages "$PYTHON" || fail "PYTHON=$PYTHON lacks some of the required packages: $PYTHON -m pip install -r requirements.txt"
elif [ -x .venv/bin/python ] && has_packages .venv/bin/python; then
    PYTHON=$PWD/.venv/bin/python
elif command -v python3 >/dev/null 2>&1 && has_packages python3; then
    PYTHON=python3
else
    set_up "${1:-}"
fi
