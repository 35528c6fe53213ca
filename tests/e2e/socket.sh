#!/bin/bash
# e2e: the socket: private, one daemon each, replaced when it was left behind, refused where it cannot be
. "$(dirname "$0")/lib.sh"

MODEL='' configure
start_daemon
[ "$(stat -c '%a %F' "$T/run/quire.sock")" = "600 socket" ] || fail "the socket is not private"
[ "$(stat -c %a "$T/run")" = 700 ] || fail "its directory is not private"
[ "$(stat -c %a "$T/store")" = 700 ] || fail "the store is not private"

# In use: the path and the process that has it, and the first one lives on.
run 6 serve
says err "$T/run/quire.sock"
says err "process $DAEMON"
run 0 status

# Another socket, the same store: refused as well.
run 6 --socket "$T/run/other.sock" serve
says err "$T/store"
run 0 status

# The store's next daemon replaces the socket that kill -9 left.
kill_daemon
start_daemon
run 0 status
stop_daemon

# A path that is too long, and one that holds something else.
run 2 --socket "$T/$(printf 'x%.0s' $(seq 120))" serve
says err "107"
echo precious >"$T/file"
run 2 --socket "$T/file" serve
says err "not a socket"
grep -q precious "$T/file" || fail "the file was overwritten"

# QUIRE_SOCKET, as a path and as a URL; a relative one is the caller's.
MODEL='' configure
start_daemon
for socket in "$T/run/quire.sock" "unix://$T/run/quire.sock"; do
	QUIRE_SOCKET=$socket "$QUIRE" status >"$T/out" || fail "QUIRE_SOCKET=$socket"
done
(cd "$T" && "$QUIRE" --socket run/quire.sock status >"$T/out") || fail "a relative socket"
stop_daemon
