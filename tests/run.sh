#!/bin/sh
# Run the tests in two processes, setting up the environment first if needed; those marked `long` are left out.
# Arguments go to pytest: sh tests/run.sh -k arch, -n 4 for more processes, -n 0 for none, -m "" for the long ones too.
cd "$(dirname "$0")/.." || exit 2
set -- tests/requirements.txt "$@"
. resnet48/environment.sh
shift
case "$*" in
    *no:xdist*) ;;
    *) set -- -n 2 --dist worksteal "$@" ;;
esac
export PYTHONHASHSEED="${PYTHONHASHSEED:-0}" # every run the same
exec "$PYTHON" -m pytest -q tests "$@"
