#!/bin/bash
# e2e: former snapshots are listed, answer as they did when they were current, and the oldest go
. "$(dirname "$0")/lib.sh"

configure
sed -i "s|^store: .*|store: {path: $T/store, keep_snapshots: 2}|" "$T/quire.yaml"
start_daemon
text "$T/source/a.txt" 40 1
for version in 1 2 3 4; do
	text "$T/source/b.txt" 30 $version
	run 0 ingest "$T/source" --as words
	run 0 ask words "what?" --max-tokens 6 --seed 1
	cp "$T/out" "$T/answer$version"
done
# A night without a change pushes nothing out, and needs no more than the name.
run 0 reindex words
run 4 reindex word
says err 'is "words" meant?'
run 0 corpora
says out "3 snapshots"
run 0 snapshots words
[ "$(awk '{ print $1 }' "$T/out" | tr '\n' ' ')" = "5 3 2 " ] || fail "there are other snapshots"
[ "$(grep -c 'current$' "$T/out")" = 1 ] || fail "not one is current"
head -n 1 "$T/out" | grep -q 'current$' || fail "the newest is not current"
run 0 --json snapshots words
[ "$(grep -c '"type":"snapshot","v":1' "$T/out")" = 3 ] || fail "not three JSON lines"

for version in 2 3; do
	run 0 ask words "what?" --max-tokens 6 --seed 1 --snapshot $version
	cmp -s "$T/out" "$T/answer$version" || fail "snapshot $version answers otherwise than it did"
done
run 0 ask words "what?" --max-tokens 6 --seed 1
cmp -s "$T/out" "$T/answer4" || fail "the current snapshot answers otherwise than it did"
run 4 ask words "what?" --snapshot 1
says err "corpus 'words' has no snapshot 1: there are 5 (the current one), 3, 2"
run 2 ask words "what?" --snapshot new
says err '--snapshot: "new"'
run 4 snapshots other
run 0 check --read-data
stop_daemon

start_daemon
run 0 ask words "what?" --max-tokens 6 --seed 1 --snapshot 2
cmp -s "$T/out" "$T/answer2" || fail "snapshot 2 answers otherwise after a restart"

# The current one stays, and all that is named is there or nothing goes.
run 2 forget words
run 2 forget words --keep 1 --snapshot 2
run 2 forget words --snapshot 5
says err 'snapshot 5 is the current one'
run 4 forget words --snapshot 2 --snapshot 9
says err "corpus 'words' has no snapshot 9"
run 0 snapshots words
[ "$(wc -l <"$T/out")" = 3 ] || fail "a refused request forgot something"
run 0 forget words --snapshot 2
says out "snapshot 2 of words is forgotten"
run 4 ask words "what?" --snapshot 2
run 0 ask words "what?" --max-tokens 6 --seed 1 --snapshot 3
cmp -s "$T/out" "$T/answer3" || fail "snapshot 3 answers otherwise than it did"
run 0 --json forget words --keep 0
says out '"forgotten":[3]'
run 0 ask words "what?" --max-tokens 6 --seed 1
cmp -s "$T/out" "$T/answer4" || fail "the current snapshot answers otherwise than it did"
run 0 check --read-data
run 0 rm words
run 4 snapshots words
run 0 check --read-data
says out "0 spans"
stop_daemon
