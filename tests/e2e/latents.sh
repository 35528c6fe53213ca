#!/bin/bash
# e2e: latents are read when a question attends to them; damage under a live daemon is mended in the middle of an answer
. "$(dirname "$0")/lib.sh"

configure
text "$T/source/a.txt" 120 1
text "$T/other/b.txt" 120 2
start_daemon
run 0 ingest "$T/source" --as one
run 0 ingest "$T/other" --as two
for c in one two; do
	run 0 ask $c "what is number 1?" --max-tokens 12
	cp "$T/out" "$T/expected.$c"
done

# In turn: each is loaded anew, and the answers stay.
for c in one two one two; do
	run 0 ask $c "what is number 1?" --max-tokens 12
	cmp "$T/out" "$T/expected.$c" || fail "an answer of $c is another one"
done
# The same again finds its latents in memory.
run 0 --json ask two "what is number 1?" --max-tokens 12
[ "$(field loaded_tokens <"$T/out")" = 0 ] || fail "a corpus that is held was loaded"
[ "$(field read_bytes <"$T/out")" = 0 ] || fail "the same question read the store again"
wanted=$(field wanted_latents <"$T/out") held=$(field held_latents <"$T/out")
[ "$wanted" -gt 0 ] && [ "$wanted" = "$held" ] || fail "of $wanted latents $held were in memory"
run 0 status
says out "of them in memory"

# With the least memory for latents: other reads, the same answers.
stop_daemon
configure "context: {latent_cache: 64KiB}"
start_daemon
for c in one two; do
	run 0 ask $c "what is number 1?" --max-tokens 12
	cmp "$T/out" "$T/expected.$c" || fail "an answer of $c with little memory is another one"
done
stop_daemon
configure "context: {latent_cache: 1KiB}"
start_daemon
run 7 ask one "what is number 1?"
says err "context.latent_cache"
stop_daemon

# Every byte of the first corpus's first group goes bad while the daemon lives, after the index keys were read.
configure
start_daemon
run 0 ask one "what?" --max-tokens 1
bytes=$(quire --json corpora | tr '{' '\n' | grep '"one"' | field bytes)
head -c $((bytes / 8)) /dev/zero | dd of="$T/store/segment-000001" conv=notrunc status=none
run 0 --json ask one "what is number 1?" --max-tokens 12
[ "$(field recomputed_tokens <"$T/out")" -gt 0 ] || fail "nothing was computed again"
says log "of corpus 'one' are computed again: "
run 0 ask one "what is number 1?" --max-tokens 12
cmp "$T/out" "$T/expected.one" || fail "the answer over damage is another one"
run 0 ask two "what is number 1?" --max-tokens 12
cmp "$T/out" "$T/expected.two" || fail "the answer of the other corpus is another one"
run 0 ask one "what is number 1?" --max-tokens 12
cmp "$T/out" "$T/expected.one" || fail "the answer after a quarantine is another one"

# The next ingest stores anew what was found.
run 0 ingest "$T/source" --as one
run 0 repair
run 0 ingest "$T/source" --as one
run 0 check --read-data
says out " 0 wait to be computed again"
run 0 ask one "what is number 1?" --max-tokens 12
cmp "$T/out" "$T/expected.one" || fail "the answer after mending is another one"
stop_daemon
