#!/bin/bash
# e2e: kill -9 in the middle of a sweep that has all tokens in one chunk: the job goes on at a later layer, and ends as if
# nothing had been
. "$(dirname "$0")/lib.sh"

# A checkpoint takes a second's work: as many lines as that is on this machine.
checkpoint()
{
	local lines job=0
	for lines in 300 600 1200 2400 4800 9600; do
		text "$T/source/a.txt" $lines 1
		job=$((job + 1))
		run 0 ingest "$T/source" --as words --detach
		says out "j-$job"
		while :; do
			[ -z "$(find "$T/store" -name 'scratch-*')" ] || return 0
			quire jobs "j-$job" >"$T/job"
			grep -q '^state     \(queued\|running\)' "$T/job" || break
			sleep 0.02
		done
		run 0 rm words
	done
	fail "no checkpoint is made"
}

SCRATCH=256MiB configure
start_daemon
checkpoint
job=$(sed -n 's/.*\(j-[0-9]*\).*/\1/p' "$T/out" | head -n 1)
sleep 0.3 # the file is written, then the row that names it
kill_daemon
start_daemon
for _ in $(seq 600); do
	quire jobs "$job" >"$T/job"
	! grep -q 'resumed at layer' "$T/job" || break
	grep -q '^state     \(queued\|running\)' "$T/job" || break
	sleep 0.02
done
# It may have been so near its end that nobody saw it go on; the log has it all the same.
grep -q '^state     done' "$T/job" || says job "(resumed at layer "
says log "corpus 'words' go on at layer "
until_state "$job" done
run 0 ask words "who?" --max-tokens 16
cp "$T/out" "$T/resumed"
[ -z "$(find "$T/store" -name 'scratch-*')" ] || fail "scratch files are left behind"

# The same, undisturbed.
run 0 rm words
run 0 ingest "$T/source" --as words
run 0 ask words "who?" --max-tokens 16
cmp "$T/resumed" "$T/out" || fail "the answer is not the undisturbed one"
stop_daemon
