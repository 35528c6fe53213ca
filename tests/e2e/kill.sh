#!/bin/bash
# e2e: kill -9 in the middle of an ingest: the old corpus answers, the job goes on, and ends as if nothing had been
. "$(dirname "$0")/lib.sh"

# What an undisturbed daemon makes of both versions.
configure
text "$T/source/a.txt" 40 1
start_daemon
run 0 ingest "$T/source" --as words
run 0 ask words "who?" --max-tokens 16
cp "$T/out" "$T/old"
text "$T/source/b.txt" 600 2
run 0 ingest "$T/source" --as words
run 0 ask words "who?" --max-tokens 16
cp "$T/out" "$T/new"
run 0 --json corpora
total=$(field tokens <"$T/out")
stop_daemon

rm -r "$T/store" "$T/source/b.txt"
start_daemon
run 0 ingest "$T/source" --as words
text "$T/source/b.txt" 600 2
run 0 ingest "$T/source" --as words --detach
says out j-2
until_progress j-2 $((total / 3))
kill_daemon

# The old snapshot is whole while the new one is not.
start_daemon
run 0 ask words "who?" --max-tokens 16
cmp "$T/old" "$T/out" || fail "the old corpus does not answer as before"
until_progress j-2 $((total / 2))
kill_daemon
start_daemon
until_state j-2 done
says job "(attempt 3)"
run 0 --json jobs j-2
[ "$(field reused_tokens <"$T/out")" -ge $((total / 3)) ] || fail "what was durable has been computed again"
run 0 ask words "who?" --max-tokens 16
cmp "$T/new" "$T/out" || fail "the answer is not the undisturbed one"
stop_daemon

# A job that the daemon does not survive three times is given up, and the queue goes on behind it.
text "$T/source/c.txt" 1000 3
start_daemon
run 0 ingest "$T/source" --as words --detach
for attempt in 1 2 3; do
	until_progress j-3 1
	kill_daemon
	start_daemon
done
until_state j-3 failed
says job "3 times"
text "$T/other/a.txt" 20 1
run 0 ingest "$T/other" --as others
run 0 ask words "who?" --max-tokens 16
cmp "$T/new" "$T/out" || fail "the answer changed though the ingest failed"
stop_daemon
