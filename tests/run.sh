#!/bin/sh
# Run all tests, setting up the environment first if needed. Arguments go to pytest: sh tests/run.sh -k arch
cd "$(dirname "$0")/.." || exit 2
set -- tests/requirements.txt "$@"
. resnet48/environment.sh
shift
exec "$PYTHON" -m pytest -q tests "$@"
