#!/bin/sh
# Runs the command that the platform sent, once, and notes in cmd.log how it ended: [executing], then [successful] or
# [failed<exit code>]. confd waits for a reload command, so the work goes on behind it.
set -u
agent=/opt/qingcloud/app-agent
info=$agent/bin/cmd.info
last=$agent/run/last-id
log=$agent/log/cmd.log
mkdir -p "$agent/log" "$agent/run"

{
  read -r id
  read -r timeout
  read -r command
} <"$info"
[ -n "$id" ] && [ -n "$command" ] || exit 0
[ "$(cat "$last" 2>/dev/null)" != "$id" ] || exit 0

note() {
  printf '%s %s [%s]: %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$id" "$1" "$command" >>"$log"
}

execute() {
  # One command at a time; a second one waits.
  flock 9
  printf '%s\n' "$id" >"$last.new" && mv "$last.new" "$last"
  note executing
  timeout --kill-after=5 "$timeout" /bin/sh -c "$command" >>"$log" 2>&1 9>&-
  code=$?
  if [ "$code" -eq 0 ]; then note successful; else note "failed<$code>"; fi
}

execute 9>"$agent/run/lock" </dev/null >/dev/null 2>&1 &
