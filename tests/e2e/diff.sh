#!/bin/bash
# e2e: what changed between two snapshots, file by file, and how much of what is computed both share
. "$(dirname "$0")/lib.sh"

configure
start_daemon
for n in 1 2 3 4 5; do
	text "$T/source/$(echo abcde | cut -c $n).txt" 12 $n
done
run 4 diff words
says err "no corpus 'words'"
run 0 ingest "$T/source" --as words
run 4 diff words
says err "corpus 'words' has no snapshot before 1"

# b changes and then stands last, d goes, a new one comes.
text "$T/source/b.txt" 20 3
rm "$T/source/d.txt"
text "$T/source/new/f.txt" 5 4
run 0 reindex words
run 0 diff words
says out "from     words@1 "
says out "to       words@2 "
[ "$(awk '/^(removed|added|changed|moved)/ { print $1, $NF }' "$T/out" | sort | tr '\n' ' ')" = \
	"added new/f.txt changed b.txt removed d.txt " ] || fail "other changes"
says out "files    1 removed, 1 added, 1 changed, 0 moved, 3 as they were"
grep -q '^shared   the first [0-9]* tokens' "$T/out" || fail "what is shared is not told"

# What is shared is what the second ingest did not compute.
kept=$(quire --json jobs j-2 | field reused_tokens)
run 0 --json diff words
[ "$(head -n 1 "$T/out" | field shared_spans)" = $((kept / 64)) ] || fail "the shared spans are not those that were kept"
[ "$(wc -l <"$T/out")" = 4 ] || fail "not one line for the whole and one for each file"
says out '{"type":"diff","v":1,"from":{"corpus":"words","id":1,"current":false,'
says out '{"type":"change","v":1,"change":"removed","path":"d.txt","from_place":'

# Sorted anew: nothing changes but places.
run 0 ingest "$T/source" --as words --full
run 0 diff words
grep -q '^moved .* place [0-9]* -> [0-9]*$' "$T/out" || fail "no file has moved"
says out "0 removed, 0 added, 0 changed,"

# Any two, in either direction, and of two corpora.
run 0 diff words@1
says out "to       words@3 "
run 0 diff words@2 words@1
says out "to       words@1 "
grep -q '^removed .* new/f.txt$' "$T/out" || fail "the direction"
run 0 ingest "$T/source" --as others
run 0 diff words others
says out "0 removed, 0 added, 0 changed, 0 moved, 5 as they were"

run 4 diff words@9
says err "corpus 'words' has no snapshot 9: there are 3 (the current one), 2, 1"
run 2 diff words@x
says err '"x" is not the id of a snapshot'
run 2 diff words words@3
says err "compared with itself"
run 2 diff
run 2 diff words others more
stop_daemon

# It needs no model.
MODEL= configure
start_daemon
run 0 diff words@2 words@1
stop_daemon
