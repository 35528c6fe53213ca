#!/bin/bash
# e2e: what the store holds is shown: a snapshot's facts, its files, and the text of a file whatever is on disk by now
. "$(dirname "$0")/lib.sh"

configure
text "$T/source/a.txt" 12 1
text "$T/source/sub/b.txt" 7 2
printf 'PASSWORD=x\n' >"$T/source/.env"
printf '\033[2Jx\nlast line without a feed' >"$T/source/c.txt"
cp -r "$T/source" "$T/first"
start_daemon
run 4 show words
run 0 ingest "$T/source" --as words
text "$T/source/a.txt" 20 3
rm "$T/source/c.txt"
printf 'x\0' >"$T/source/image.png"
run 0 reindex words

# The text is that of the snapshot; the work tree is not looked at.
mv "$T/source" "$T/elsewhere"
run 0 show words@1 a.txt
sed 's/^ *[0-9]*  //' "$T/out" | cmp -s - "$T/first/a.txt" || fail "the text of the former snapshot"
run 0 show words a.txt
sed 's/^ *[0-9]*  //' "$T/out" | cmp -s - "$T/elsewhere/a.txt" || fail "the text of the current snapshot"
run 0 show words a.txt:19-20
[ "$(awk '{ print $1 }' "$T/out" | tr '\n' ' ')" = "19 20 " ] || fail "the numbers of the lines"
sed 's/^ *[0-9]*  //' "$T/out" | cmp -s - <(tail -n 2 "$T/elsewhere/a.txt") || fail "the last two lines"
run 0 show words --snapshot 1 c.txt
says out '   1  \x1b[2Jx'
says out '   2  last line without a feed'
run 0 --json show words@1 c.txt:2
says out '{"type":"document","v":1,"corpus":"words","id":1,"path":"c.txt","first_token":'
says out '{"type":"line","v":1,"line":2,"text":"last line without a feed"}'
[ "$(wc -l <"$T/out")" = 2 ] || fail "not one line for the file and one for each line"
run 4 show words c.txt
says err "snapshot 2 of corpus 'words' has no file \"c.txt\""
run 4 show words b.txt
says err 'is "sub/b.txt" meant?'
run 4 show words .env
says err "it was left out (.env: may hold secrets)"
run 4 show words a.txt:21
says err "there is no line 21, the file has 20"
run 2 show words a.txt:3-2
run 2 show words@1 --snapshot 1

# A snapshot's files, and its facts.
run 0 files words --snapshot 1
says out "12 lines  a.txt"
says out "c.txt"
run 0 files words@1 --skipped
[ "$(cat "$T/out")" = ".env: may hold secrets" ] || fail "what was skipped in the first snapshot"
run 0 files words --skipped
says out "image.png"
run 4 files words --snapshot 7
says err "there are 2 (the current one), 1"
run 0 show words
says out "snapshot  2, the current one"
says out "(the daemon's model)"
grep -q '^rows      bf16: [0-9]* groups\? of [0-9,]* bytes a token.*; index keys in ' "$T/out" || fail "the row format"
says out "order     2 files, sub/b.txt first and a.txt last; 2 left out"
run 0 show words@1
says out "snapshot  1, a former one"
run 0 --json show words@1
says out '{"type":"snapshot","v":1,"corpus":"words","id":1,"current":false,'
[ "$(field own_tokens <"$T/out")" -gt 0 ] || fail "what the former snapshot alone needs"

# And after a restart.
run 0 check --read-data
stop_daemon
start_daemon
run 0 show words@1 a.txt
sed 's/^ *[0-9]*  //' "$T/out" | cmp -s - "$T/first/a.txt" || fail "the text after a restart"
stop_daemon

# Facts and files need no model; a text does, and says so.
MODEL= configure
start_daemon
run 0 show words
run 0 files words@1
run 1 show words a.txt
says err "set model.path"
stop_daemon
