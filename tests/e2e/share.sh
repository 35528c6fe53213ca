#!/bin/bash
# e2e: ingests that wait together share a sweep: all run at once, a question is answered in the midst, one that is cancelled or
# fails ends no other, and after kill -9 they go on together
. "$(dirname "$0")/lib.sh"

# wait_for TEXT: until the log has it.
wait_for()
{
	for _ in $(seq 600); do
		! grep -qF -- "$1" "$T/log" || return 0
		sleep 0.05
	done
	fail "the log does not say: $1"
}

# answers NAME: what each corpus answers, in $T/NAME.
answers()
{
	for corpus in one two three; do
		run 0 ask $corpus "who?" --max-tokens 16
		cat "$T/out"
	done >"$T/$1"
}

SCRATCH=256MiB configure
text "$T/first/a.txt" 500 1
for i in 1 2 3; do
	text "$T/source$i/a.txt" $((200 + 25 * i)) $((i + 1))
done

# Each by itself.
start_daemon
run 0 ingest "$T/source1" --as one
run 0 ingest "$T/source2" --as two
run 0 ingest "$T/source3" --as three
answers alone
! grep -q "share a sweep" "$T/log" || fail "one corpus shares a sweep with itself"
for corpus in one two three; do
	run 0 rm $corpus
done

# While another one is at work they come to wait: one whose source is gone by then among them, and a dry run, which does not wait.
run 0 ingest "$T/first" --as first --detach
says out j-4
run 0 ingest "$T/source1" --as one --detach
run 0 ingest "$T/source2" --as two --detach
run 0 ingest "$T/source3" --as three --detach
mkdir "$T/gone"
run 0 ingest "$T/gone" --as gone --detach
rmdir "$T/gone"
run 0 ingest "$T/source1" --as dry --dry-run
says out "tokens"
run 0 jobs j-4
says out "state     running"
until_state j-4 done
wait_for "3 corpora share a sweep"
until_state j-8 failed
run 0 jobs
[ "$(grep -c '^j-[567] *running' "$T/out")" = 3 ] || fail "three run at once"
run 0 status
says out "3 jobs running"
run 0 ask first "who?" --max-tokens 4
run 0 jobs j-6
says out "state     running"
kill_daemon

# They go on together.
sed -i 's/share a sweep/shared a sweep/' "$T/log"
start_daemon
wait_for "3 corpora share a sweep"
run 0 cancel j-6
until_state j-6 cancelled
until_state j-5 done
says job "(attempt 2)"
until_state j-7 done
run 4 ask two "who?"
run 0 ingest "$T/source2" --as two
answers shared
cmp "$T/alone" "$T/shared" || fail "the answers are not those of corpora that were ingested alone"
stop_daemon
