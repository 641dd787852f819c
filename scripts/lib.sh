# What the scripts share: where the project is, which Python, how a person is spoken to. Sourced, never run.
# Humans read stderr, programs read stdout. Works with the bash 3.2 of macOS.
set -euo pipefail

# With CDPATH, `cd` may go elsewhere, and says where it went. -P: one clone has one path, whichever link leads to it.
unset CDPATH
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$ROOT/.venv
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$ROOT/native/target}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf '%s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# The first interpreter that is new enough, at last that of the environment; else any python3, so that doctor can say what is
# wrong with it.
find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3.14 python3 python "$VENV/bin/python"; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    command -v python3 || command -v python || true
}
GIVEN_PYTHON=${PYTHON:-}
PYTHON=$(find_python)
# What was merely found, the scripts that this one runs must not take for named by a person.
[ "$(command -v "$GIVEN_PYTHON" || true)" = "$PYTHON" ] || export -n PYTHON
[ -n "$PYTHON" ] || fail "no Python found. try: install Python 3.11 or newer (with its venv module) and run this again"

setup() { "$ROOT/scripts/setup" "$@"; }

# -P keeps the folder a person stands in off the import path: a stranger's node/ there must not be run as ours.
run_module() { exec "$VENV/bin/python" -P -m "$@"; }

STAGE_SUMMARY=""
STAGES_PASSED=0
STAGES_FAILED=0

# stage NAME BUDGET_SECONDS COMMAND…: says what runs and for how long it may, runs it without standard input, keeps
# going when it fails (finish_stages has the last word), and reports the time it took.
stage() {
    local name=$1 budget=$2 started=$SECONDS code=0 took verdict=passed
    shift 2
    say ""
    say "== $name (budget ${budget} s)"
    "$@" </dev/null || code=$?
    took=$((SECONDS - started))
    if [ "$code" -eq 0 ]; then
        STAGES_PASSED=$((STAGES_PASSED + 1))
    else
        STAGES_FAILED=$((STAGES_FAILED + 1))
        verdict="FAILED with exit code $code"
    fi
    [ "$took" -le "$budget" ] || verdict="$verdict, over its budget of $budget s"
    say "== $name: $verdict, $took s"
    STAGE_SUMMARY="$STAGE_SUMMARY$(printf '%5d s  %-28s %s' "$took" "$name" "$verdict")"$'\n'
}

# Prints the table and the count, and ends the script: 0 only when every stage passed and there was one at all.
finish_stages() {
    local title=$1
    printf '\n%s\n%s' "$title" "$STAGE_SUMMARY"
    printf 'stages: %d passed, %d failed\n' "$STAGES_PASSED" "$STAGES_FAILED"
    [ "$STAGES_FAILED" -eq 0 ] && [ "$STAGES_PASSED" -gt 0 ]
}
