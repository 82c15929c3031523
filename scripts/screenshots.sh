#!/usr/bin/env bash
# Pictures of HTML pages as a browser shows them: 1280 and 390 pixels wide, light and dark, in full or so many pixels high.
#
#   bash scripts/screenshots.sh [--height PIXELS] DIRECTORY PAGE.html...     -> DIRECTORY/PAGE-1280-light.png ...
#
# Needs Chromium (Debian: apt-get install chromium; or CHROMIUM=path). Playwright, which steers it, goes into a virtual
# environment of its own, .venv-screenshots. The network is off in the browser: a page that wants something from it fails.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
browser=${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}
[ -n "$browser" ] || { echo "error: no Chromium found; install it (apt-get install chromium) or set CHROMIUM" >&2; exit 3; }
venv=${SCREENSHOTS_VENV:-$root/.venv-screenshots}
if [ ! -x "$venv/bin/playwright" ]; then
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check playwright
fi
"$venv/bin/python" "$root/scripts/screenshots.py" "$browser" "$@"
