#!/bin/sh
# What pip cannot install for the tests: a Chromium and a PostgreSQL server. Debian's packages where there is apt-get,
# else Playwright's own Chromium; without PostgreSQL its tests are skipped and say so.
set -eu
missing=""
command -v chromium > /dev/null || command -v chromium-browser > /dev/null || missing="$missing chromium"
ls /usr/lib/postgresql/*/bin/initdb > /dev/null 2>&1 || missing="$missing postgresql"
[ -n "$missing" ] || exit 0
if command -v apt-get > /dev/null; then
    as_root=""
    [ "$(id -u)" = 0 ] || as_root="sudo"
    echo "Installing Debian's$missing"
    $as_root apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing > /dev/null
elif [ "${missing#*chromium}" != "$missing" ]; then
    .venv/bin/python -m playwright install chromium
fi
