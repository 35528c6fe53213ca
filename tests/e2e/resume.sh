#!/bin/bash
# e2e: kill -9 in the middle of a sweep that has all tokens in one chunk: the job goes on at a later layer, and ends as if
# nothing had been
. "$(dirname "$0")/lib.sh"

SCRATCH=256MiB configure
text "$T/source/a.txt" 1500 1
start_daemon
run 0 ingest "$T/source" --as words
run 0 ask words "who?" --max-tokens 16
cp "$T/out" "$T/whole"
run 0 rm words

# checkpoint: wait until the running job has made one that is not there yet.
checkpoint()
{
	for _ in $(seq 1200); do
		[ -z "$(find "$T/store" -name 'scratch-*' -newer "$T/mark" 2>/dev/null)" ] || return 0
		sleep 0.05
	done
	fail "no checkpoint is made"
}

touch "$T/mark"
run 0 ingest "$T/source" --as words --detach
says out j-2
checkpoint
sleep 1 # the file is written, then the row that names it
kill_daemon
start_daemon
for _ in $(seq 600); do
	quire jobs j-2 >"$T/job"
	! grep -q 'resumed at layer' "$T/job" || break
	grep -q '^state     \(queued\|running\)' "$T/job" || fail "the job ended without having gone on at a later layer"
	sleep 0.05
done
says job "(resumed at layer "
says log "corpus 'words' go on at layer "
until_state j-2 done
run 0 ask words "who?" --max-tokens 16
cmp "$T/whole" "$T/out" || fail "the answer is not the undisturbed one"
[ -z "$(find "$T/store" -name 'scratch-*')" ] || fail "scratch files are left behind"
stop_daemon
