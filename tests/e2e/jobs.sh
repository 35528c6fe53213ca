#!/bin/bash
# e2e: jobs: detached, listed, followed, cancelled while they run or wait; Ctrl-C leaves one to the daemon
. "$(dirname "$0")/lib.sh"

configure
text "$T/source/a.txt" 1500 1
text "$T/other/a.txt" 30 2
start_daemon

run 0 ingest "$T/source" --as words --detach
says out j-1
# The same again is the same job; from elsewhere it has to wait.
run 0 ingest "$T/source" --as words --detach
says out j-1
run 6 ingest "$T/other" --as words
says err "quire cancel j-1"
run 0 ingest "$T/other" --as others --detach
says out j-2
run 0 jobs
grep -q '^j-2 *queued' "$T/out" && grep -q '^j-1 *running' "$T/out" || fail "one runs, one waits"

# Ctrl-C on a client: status 130, and the job goes on.
until_progress j-1 256
background follower ingest "$T/source" --as words
sleep 1
kill -INT "$CLIENT"
finish 130
says follower.err "detached: job j-1 goes on"
says follower.err "quire cancel j-1"
run 0 jobs j-1
says out "state     running"

# The one that waits, then the one that runs; both ends are final, and what was computed stays for the next time.
run 0 cancel j-2
until_state j-2 cancelled
before=$(quire --json jobs j-1 | field done_tokens)
run 0 cancel j-1
until_state j-1 cancelled
run 2 cancel j-1
run 4 ask words "who?"
sed -i 200q "$T/source/a.txt"
run 0 --json ingest "$T/source" --as words
grep '"state":"done"' "$T/out" | tail -n 1 >"$T/last"
[ "$(field reused_tokens <"$T/last")" -ge $((before < 1024 ? before / 64 * 64 - 64 : 1024)) ] || fail "nothing was kept of a cancelled job"

# A followed job that is cancelled by somebody else ends its follower.
text "$T/third/a.txt" 1500 3
background follower ingest "$T/third" --as third
for _ in $(seq 600); do
	! quire jobs j-4 >"$T/job" 2>&1 || break
	sleep 0.05
done
until_progress j-4 1
run 0 cancel j-4
finish 130
stop_daemon

# Jobs are there after a restart, newest first.
start_daemon
run 0 jobs
[ "$(awk '{ print $1 $2 }' "$T/out" | tr '\n' ' ')" = "j-4cancelled j-3done j-2cancelled j-1cancelled " ] || fail "the list of jobs"
stop_daemon
