#!/bin/sh
# Make .venv what uv.lock says, on a machine that has nothing but Python 3.11 or later. Used by the Makefile and by ./pdctl.
# Prints nothing when there is nothing to do; PYTHON chooses the interpreter.
set -eu
UV_VERSION=0.13.8
cd "$(dirname -- "$0")/../.."

say() { printf 'pdstack: %s\n' "$*" >&2; }

find_python() {
    # The Python of an existing .venv comes first, so that it is kept.
    for candidate in ${PYTHON:-} .venv/bin/python python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            # The real interpreter behind virtual environments and version managers.
            "$candidate" -c 'import os, sys; print(os.path.realpath(sys.executable))'
            return
        fi
    done
    say "Python 3.11 or later is needed, and python3 is $(python3 --version 2>/dev/null || echo missing): install one, or say PYTHON=/path/to/python3."
    exit 2
}

right_uv() { [ "$("$1" --version 2>/dev/null | cut -d' ' -f2)" = "$UV_VERSION" ]; }

install_uv() { # into .tools: through a virtual environment, or with pip alone where Debian left ensurepip out
    say "installing uv $UV_VERSION into .tools"
    if "$1" -m venv .tools >/dev/null 2>&1; then
        .tools/bin/python -m pip install -q --disable-pip-version-check "uv==$UV_VERSION"
    elif "$1" -m pip --version >/dev/null 2>&1; then
        "$1" -m pip install -q --disable-pip-version-check --root-user-action=ignore --upgrade --target .tools "uv==$UV_VERSION"
    else
        rm -rf .tools
        say "this Python can make no virtual environment and has no pip: install python3-venv (Debian, Ubuntu: apt-get install python3-venv)."
        exit 2
    fi
}

# The scripts of a virtual environment hold its path, so that a clone that was moved or copied needs a new one.
if [ -e .venv/bin/pdctl ] && ! head -n 3 .venv/bin/pdctl | grep -qF -e "$(pwd)/.venv/" -e "$(pwd -P)/.venv/"; then
    say "this clone was moved: making .venv anew"
    rm -rf .venv
fi

python=$(find_python)
if right_uv uv; then
    uv=uv
else
    uv=.tools/bin/uv
    right_uv "$uv" || install_uv "$python"
fi

unset VIRTUAL_ENV
# The Python that is there is good enough: uv must not fetch another one. It is asked for by version and found first on the
# path; asked for by path, uv would make .venv anew whenever another path leads to the same interpreter.
PATH=$(dirname -- "$python"):$PATH
UV_PYTHON=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
export PATH UV_PYTHON UV_PYTHON_DOWNLOADS=never UV_LINK_MODE="${UV_LINK_MODE:-copy}"
if [ "${1:-sync}" = sync ]; then
    [ -x .venv/bin/pdctl ] || say "installing the workspace into .venv (about a minute, once)"
    "$uv" sync --all-packages --locked -q
    touch .venv/.synced
else
    exec "$uv" "$@"
fi
