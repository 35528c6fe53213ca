#!/bin/bash
# e2e: a damaged store is checked and repaired, corpora are removed, a limit is kept, and one daemon has the store
. "$(dirname "$0")/lib.sh"

configure
text "$T/source/a.txt" 60 1
text "$T/other/b.txt" 60 2
start_daemon
run 0 ingest "$T/source" --as one
run 0 ingest "$T/other" --as two
run 0 check --read-data
says out "nothing is damaged"
run 0 --json check one --read-data=50%
says out '"damaged":0'
run 0 ask one "what?" --max-tokens 6 --seed 1
cp "$T/out" "$T/before"

# A second daemon on the same store, with a socket of its own, goes and says whose the store is.
status=0
timeout 20 "$QUIRE" serve --config "$T/quire.yaml" --socket "$T/second.sock" >"$T/out" 2>"$T/err" || status=$?
[ $status = 6 ] || fail "a second daemon ended with $status, not 6"
says err "store $T/store is in use by process $DAEMON"
stop_daemon

# The first bytes of the segment are records of the corpus that was ingested first.
printf '\377\376' | dd of="$T/store/segment-000001" bs=1 seek=100 conv=notrunc status=none
start_daemon
run 0 check
run 1 check --read-data
says out "checksum of $T/store/segment-000001"
says out "(touches one)"
says out 'quire repair'
run 1 --json check one --read-data
says out '"corpora":["one"]'
run 0 check two --read-data
run 0 repair
says out "1 spans are quarantined"
run 0 check --read-data
says out "1 wait to be computed again"

# The damaged span is computed again: the answer is what it was.
run 0 ask one "what?" --max-tokens 6 --seed 1
cmp -s "$T/out" "$T/before" || fail "the answer changed"
run 0 ingest "$T/source" --as one
run 0 check --read-data
says out " 0 wait to be computed again"

run 0 rm two
says out "two is removed: "
run 4 ask two "what?"
run 4 rm two
says err "no corpus 'two'; the nearest name is 'one'"
run 4 check two
run 2 rm "a/b"
run 2 check --read-data=0%
says err '--read-data: "0%"'
run 0 check --read-data
stop_daemon

# A limit that is too small is a refusal with the numbers, and what is there stays.
configure
sed -i "s|^store: .*|store: {path: $T/store, max_bytes: 1MiB}|" "$T/quire.yaml"
start_daemon
text "$T/large/c.txt" 9000 3
run 7 ingest "$T/large" --as large
says err "store.max_bytes"
run 0 ask one "what?" --max-tokens 6 --seed 1
cmp -s "$T/out" "$T/before" || fail "the answer changed"
stop_daemon
