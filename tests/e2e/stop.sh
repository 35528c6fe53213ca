#!/bin/bash
# e2e: SIGTERM while an ingest and a question run: status 0 within two seconds, and the job goes on afterwards
. "$(dirname "$0")/lib.sh"

endless_model
configure
text "$T/source/a.txt" 1500 1
text "$T/other/a.txt" 40 2
start_daemon
run 0 ingest "$T/other" --as others
run 0 ingest "$T/source" --as words --detach
until_progress j-2 256
background answer ask others "who?" --max-tokens 100000
sleep 0.5
stop_daemon
finish 1
says answer.err "the daemon stops"
[ ! -e "$T/run/quire.sock" ] || fail "the socket is still there"

start_daemon
until_progress j-2 512
run 0 --json jobs j-2
[ "$(field attempts <"$T/out")" = 1 ] || fail "a stop in good order was counted as an attempt"
[ "$(field reused_tokens <"$T/out")" -ge 256 ] || fail "what was durable has been computed again"
stop_daemon
