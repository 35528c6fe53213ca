#!/bin/bash
# e2e: an answer after a restart is the one before it, from what was stored, and only the question is prefilled
. "$(dirname "$0")/lib.sh"

configure
text "$T/source/a.txt" 60 1
text "$T/source/sub/b.txt" 60 2
start_daemon
run 0 ingest "$T/source" --as words
tokens=$(sed 's/,//g; s/^words: \([0-9]*\) tokens of 2 files.*/\1/' "$T/out")
[ "$tokens" -gt 500 ] || fail "that was no ingest of two files"

run 0 ask words "who holds the token?" --max-tokens 24
cp "$T/out" "$T/before"
[ -s "$T/before" ] || fail "no answer"
# Sampled with a seed: as reproducible.
run 0 ask words "who holds the token?" --max-tokens 24 --temperature 0.8 --seed 7
cp "$T/out" "$T/sampled"

stop_daemon
start_daemon
run 0 ask words "who holds the token?" --max-tokens 24
cmp "$T/before" "$T/out" || fail "the answer after the restart is another one"
says err "tokens from the store,"
run 0 --json ask words "who holds the token?" --max-tokens 24
grep '"type":"usage"' "$T/out" >"$T/usage"
[ "$(field cached_tokens <"$T/usage")" = "$tokens" ] || fail "not all of the corpus came from the store"
[ "$(field prefilled_tokens <"$T/usage")" -lt 60 ] || fail "more than the question was prefilled"
run 0 ask words "who holds the token?" --max-tokens 24 --temperature 0.8 --seed 7
cmp "$T/sampled" "$T/out" || fail "the sampled answer after the restart is another one"

# Another question in between leaves no trace.
run 0 ask words "and what is a page?" --max-tokens 24
run 0 ask words "who holds the token?" --max-tokens 24
cmp "$T/before" "$T/out" || fail "a question changed the answer to another"

# Nothing has changed: nothing is computed.
run 0 ingest "$T/source" --as words
says out "$(printf '%s' "$tokens" | sed ':a;s/\B[0-9]\{3\}\>/,&/;ta') tokens reused"
stop_daemon
