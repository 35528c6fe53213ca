#!/bin/bash
# e2e: the order of another snapshot is kept, and a dry run says how much of it
. "$(dirname "$0")/lib.sh"

configure
for n in 1 2 3 4 5; do
	text "$T/source/$(echo abcde | cut -c $n).txt" 12 $n
done
cp -r "$T/source" "$T/first"
start_daemon

# order NAME: the files of a snapshot in their order, in one line.
order()
{
	quire files "$1" | awk '{ print $NF }' | tr '\n' ' '
}

run 0 ingest "$T/source" --as words
text "$T/source/b.txt" 12 9
run 0 reindex words
[ "$(order words)" = "a.txt c.txt d.txt e.txt b.txt " ] || fail "the changed file does not stand last"
[ "$(order words@1)" = "a.txt b.txt c.txt d.txt e.txt " ] || fail "the order of the former snapshot"

# A copy of the first reading with one file changed and one new: its unchanged files stand as they did, then the others.
text "$T/first/d.txt" 14 8
text "$T/first/aa.txt" 3 7
run 0 ingest "$T/first" --as copy --order-from words@1 --dry-run
says out "copy: nothing was computed"
grep -q '^order  *4 documents as in words@1, then 2 others$' "$T/out" || fail "a dry run does not say whose order it keeps"
grep -q '^kept  *3 documents ' "$T/out" || fail "a dry run does not say what is kept"
run 4 files copy
run 0 --json ingest "$T/first" --as copy --order-from words@1 --dry-run
says out '"order_from":"words@1","followed_documents":4,'
would_keep=$(tail -n 1 "$T/out" | field kept_tokens)
run 0 ingest "$T/first" --as copy --order-from words@1
[ "$(order copy)" = "a.txt b.txt c.txt e.txt aa.txt d.txt " ] || fail "the order of the copy: $(order copy)"
kept=$(quire --json jobs | head -n 1 | field reused_tokens)
[ "$kept" = "$would_keep" ] && [ "$kept" -gt 0 ] || fail "$kept tokens were kept, and a dry run said $would_keep"
run 0 --json diff words@1 copy
[ "$(head -n 1 "$T/out" | field shared_spans)" = $((kept / 64)) ] || fail "what was kept is not what both share"

# The current order of another corpus, without an id; and back to a former order of the corpus's own, whatever --full says.
run 0 ingest "$T/first" --as third --order-from words
[ "$(order third)" = "a.txt c.txt e.txt aa.txt b.txt d.txt " ] || fail "the order of the third: $(order third)"
text "$T/source/b.txt" 12 2
run 0 reindex words --order-from words@1 --full
[ "$(order words)" = "a.txt b.txt c.txt d.txt e.txt " ] || fail "the order of before is not back"
says out "0 skipped"
run 0 --json diff words@1 words
[ "$(head -n 1 "$T/out" | field shared_tokens)" = "$(quire --json show words@1 | field tokens)" ] ||
	fail "the first reading is not there again, token by token"
[ "$(wc -l <"$T/out")" = 1 ] || fail "a file differs"

# What is not there is refused, and nothing happens.
run 4 ingest "$T/first" --as fourth --order-from words@99
says err "the order to follow: corpus 'words' has no snapshot 99"
run 4 ingest "$T/first" --as fourth --order-from wrods
says err "the nearest name is 'words'"
run 2 ingest "$T/first" --as fourth --order-from words@last
says err '"last" is not the id of a snapshot'
run 4 files fourth
run 0 check --read-data
stop_daemon
