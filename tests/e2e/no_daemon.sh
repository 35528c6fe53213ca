#!/bin/bash
# e2e: no daemon: exit status 5, the socket's path, and what to do
. "$(dirname "$0")/lib.sh"

configure
text "$T/source/a.txt" 5 1
for words in status jobs corpora "ask x y" "ingest $T/source --as x" "cancel j-1"; do
	# shellcheck disable=SC2086
	run 5 $words
	says err "quire: no daemon answers at $T/run/quire.sock"
	says err "quire serve"
done
run 5 --json status
says err '{"type":"error","v":1,"error":{"code":"unreachable"'

# A socket that its daemon left behind is no daemon.
start_daemon
kill_daemon
[ -S "$T/run/quire.sock" ] || fail "kill -9 should have left the socket"
run 5 status
says err "Connection refused"

# Nothing of a daemon is needed for these.
run 0 version
run 0 help ask
