#!/bin/bash
# e2e: kill -9 in the middle of a sweep that has all tokens in one chunk: the job goes on at a later layer, and ends as if
# nothing had been
. "$(dirname "$0")/lib.sh"

# interrupted LINES: an ingest of so many lines was killed behind its first checkpoint, and has gone on from there.
interrupted()
{
	text "$T/source/a.txt" "$1" 1
	run 0 ingest "$T/source" --as words --detach
	job=$(grep -o 'j-[0-9]*' "$T/out" | head -n 1)
	until [ -n "$(find "$T/store" -name 'scratch-*')" ]; do
		! ended "$job" || return 1
		sleep 0.02
	done
	sleep 0.3 # the file is written, then the row that names it
	kill_daemon
	start_daemon
	until grep -q "corpus 'words' go on at layer " "$T/log"; do
		! ended "$job" || return 1
		sleep 0.02
	done
}

# A checkpoint takes a second's work, and the kill has to come between it and the end: how many lines that is depends on the
# machine, and on what else it does. Where they were too few, twice as many are tried.
SCRATCH=256MiB configure
start_daemon
for lines in 300 600 1200 2400 4800 9600; do
	! interrupted $lines || break
	[ $lines -lt 9600 ] || fail "no ingest goes on behind its checkpoint"
	run 0 rm words
done
for _ in $(seq 600); do
	! ended "$job" || break
	! grep -q 'resumed at layer' "$T/job" || break
	sleep 0.02
done
# It may have been so near its end that nobody saw it go on; the log has it all the same.
grep -q '^state     done' "$T/job" || says job "(resumed at layer "
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
