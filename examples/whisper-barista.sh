#!/usr/bin/env bash
# The Whisper job on this machine and on an ssh device: an sshd on loopback with its own key, user and settings, gone
# when the run ends. Killed and started again, the job goes on where it was.
#
#     examples/whisper-barista.sh .venv/bin [JOB.toml]
set -euo pipefail
bin=$(cd "${1:-.venv/bin}" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."

job=${2:-examples/whisper-barista.toml}
home=$(mktemp -d)
"$bin/python" -m tests.sshd serve --home "$home" --name loopback >"$home/sshd.log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; rm -rf "$home"' EXIT

until [ -e "$home/devices/loopback.toml" ]; do
  if ! kill -0 "$server" 2>/dev/null; then
    echo "error: the loopback device did not start" >&2
    cat "$home/sshd.log" >&2
    exit 2
  fi
  sleep 0.2
done
EDGECOMPRESS_HOME=$home "$bin/edgecompress" run "$job"
