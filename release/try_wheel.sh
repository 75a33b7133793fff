#!/usr/bin/env bash
# Try the wheel in the folder $1 as a newcomer has it: an empty environment, an empty folder outside the repository and
# an empty cache. Versions are those of constraints.txt.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
wheels=("$root/$1"/tdpo-*.whl)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
export TDPO_CACHE="$folder/cache" PIP_DISABLE_PIP_VERSION_CHECK=1

${PYTHON:-python3} -m venv environment
environment/bin/python -m pip install --quiet -c "$root/constraints.txt" "${wheels[0]}[demo]"
PATH="$folder/environment/bin:$PATH"
mkdir work && cd work
version=$(tdpo --version)
echo "$version, from $(python -c 'import tdpo; print(tdpo.__file__)')"
[ "$(basename "${wheels[0]}")" = "tdpo-${version#tdpo }-py3-none-any.whl" ]
python -m pip check
tdpo cache fetch  # the one thing that the extra `demo` cannot bring
tdpo doctor
tdpo demo --quick
test -s runs/demo-quick/report.html
echo "The wheel works: $version"
