#!/bin/bash
# e2e: one run of the daemon under valgrind, from its start over an ingest and answers to its end, is clean
. "$(dirname "$0")/lib.sh"

command -v valgrind >/dev/null || { echo "no valgrind here"; exit 77; }
if nm "$QUIRE" 2>/dev/null | grep -q '__[at]san_init'; then
	echo "a sanitizer's build does not run under valgrind"
	exit 77
fi
configure
text "$T/source/a.txt" 12 1
# Under valgrind a step takes longer than the daemon waits for it at its end: it may end by itself.
WRAP="valgrind -q --leak-check=full --show-leak-kinds=definite,indirect --errors-for-leak-kinds=definite,indirect --error-exitcode=99 --fair-sched=yes"
STOP_MS=30000
start_daemon
run 0 ingest "$T/source" --as words
run 0 ask words "who?" --max-tokens 3
run 0 ask words "who?" --max-tokens 3 --temperature 0.7 --top-p 0.9 --top-k 20 --min-p 0.01 --seed 3
run 4 ask wrods "who?"
run 0 corpora
run 0 jobs j-1
run 0 status
echo "$RANDOM" >>"$T/source/a.txt"
run 0 ingest "$T/source" --as words
stop_daemon
! grep -q '^==' "$T/log" || fail "valgrind has something to say"
