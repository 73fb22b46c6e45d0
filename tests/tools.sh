#!/bin/sh
# Programs that some tests talk to. Where they cannot be installed, those tests skip and say so.
set -eu
missing=""
command -v redis-server >/dev/null || missing="$missing redis-server"
command -v chromedriver >/dev/null || missing="$missing chromium chromium-driver"
command -v ffmpeg >/dev/null || missing="$missing ffmpeg"
command -v identify >/dev/null || missing="$missing imagemagick"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed, tests that need them will skip:$missing"
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
{ apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; } >/dev/null 2>&1 ||
    echo "could not be installed, tests that need them will skip:$missing"
