# shellcheck shell=bash
# What the scripts share: where things are, how they speak, how a step is timed. Sourced, never run.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# One target directory for all steps, so that they share what they compiled.
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
[[ $TARGET == /* ]] || TARGET=$PWD/$TARGET
export CARGO_TARGET_DIR=$TARGET

say() { printf '%s\n' "$*"; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# step NAME COMMAND...: a header, the command, its time. The first failure ends the script.
step() {
    local name=$1 began=$SECONDS
    shift
    printf '\n=== %s\n' "$name"
    # Not in a condition: `set -e` must stay in force inside functions given as COMMAND.
    "$@"
    printf -- '--- %s: %d s\n' "$name" "$((SECONDS - began))"
    STEPS+=("$(printf '%5d s  %s' "$((SECONDS - began))" "$name")")
}
STEPS=()

# As root directly, otherwise through sudo.
as_root() {
    if [[ $EUID -eq 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -- "$@"
    else
        die "this needs root and there is no sudo; run it as root once: $*"
    fi
}

is_installed() {
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

# The compiler's own target, which is where the helper runs: guests have their host's architecture.
helper_target() {
    local arch
    arch=$(rustc -vV | sed -n 's/^host: \([^-]*\)-.*/\1/p')
    say "$arch-unknown-linux-gnu"
}

print_steps() {
    printf '\n=== done in %d s\n' "$SECONDS"
    printf '%s\n' "${STEPS[@]}"
}
