#!/bin/bash
# e2e: questions at once, during an ingest, and from clients that go away: the same answers, and nobody waits for the dead
. "$(dirname "$0")/lib.sh"

endless_model
MAX_QUEUE=12 configure
text "$T/source/a.txt" 60 1
text "$T/other/a.txt" 1500 2
start_daemon
run 0 ingest "$T/source" --as words
for i in 1 2 3 4; do
	run 0 ask words "what is number $i?" --max-tokens 16
	cp "$T/out" "$T/expected.$i"
done

ask_all()
{
	for i in 1 2 3 4 1 2 3 4; do
		background "answer.$i" ask words "what is number $i?" --max-tokens 16
	done
	for CLIENT in $LEFT; do
		finish 0
	done
	LEFT=
	for i in 1 2 3 4; do
		cmp "$T/expected.$i" "$T/answer.$i" || fail "an answer among others is another one"
	done
}
ask_all

# While an ingest runs.
run 0 ingest "$T/other" --as others --detach
until_progress j-2 256
ask_all
run 0 jobs j-2
says out "state     running"

# A client that is killed in the middle: its question is given up, and the next one does not wait for it.
cancelled=$(quire --json status | field cancelled)
background long ask words "who?" --max-tokens 1000000
for _ in $(seq 100); do
	[ -s "$T/long" ] && break
	sleep 0.1
done
[ -s "$T/long" ] || fail "no beginning of a long answer"
kill_clients
for _ in $(seq 80); do
	[ "$(quire --json status | field cancelled)" -gt "$cancelled" ] && break
	sleep 0.1
done
[ "$(quire --json status | field cancelled)" -gt "$cancelled" ] || fail "the answer to a dead client goes on"
run 0 ask words "what is number 1?" --max-tokens 16
cmp "$T/expected.1" "$T/out" || fail "an answer after a given up one is another one"

# More than the queue takes is refused, not kept waiting.
for i in $(seq 14); do
	background "many.$i" ask words "who?" --max-tokens 100000
done
for _ in $(seq 50); do
	grep -q "questions wait already" "$T"/many.*.err && break
	sleep 0.1
done
grep -q "12 questions wait already" "$T"/many.*.err || fail "the queue has no end"
run 0 status
says out "12 of 12 questions"
kill_clients
stop_daemon
