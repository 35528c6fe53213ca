#!/bin/bash
# e2e: a branch of a repository is read without a look at the files on disk, and history orders what is on disk
. "$(dirname "$0")/lib.sh"
command -v git >/dev/null || { echo "git is not installed"; exit 77; }

configure
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null HOME=$T
git_in() { git -C "$T/source" -c user.name=Ada -c user.email=ada@example.org "$@" >/dev/null 2>&1; }
mkdir "$T/source"
git_in init -b main
text "$T/source/a.txt" 5 1
text "$T/source/b.txt" 5 2
git_in add . && git_in commit -m one
git_in branch v1
for i in 2 3; do
	text "$T/source/a.txt" 5 $i
	git_in commit -am "$i"
done
rm "$T/source/b.txt"
start_daemon

run 0 ingest "$T/source@v1" --as old
run 0 files old
says out "b.txt"
run 0 corpora
says out "$T/source@v1  commit $(git -C "$T/source" rev-parse v1 | head -c 12)"

text "$T/source/c.txt" 5 7
run 0 ingest "$T/source" --as new --dry-run
says out "commit      $(git -C "$T/source" rev-parse HEAD)"
run 0 ingest "$T/source" --as new
run 0 --json files new
[ "$(grep -o '"path":"[^"]*"' "$T/out" | tr -d '\n')" = '"path":"c.txt""path":"a.txt"' ] || fail "the order is not that of the history"

# Another source is another corpus, and a ref that is not there is named.
run 9 ingest "$T/source" --as old
run 4 ingest "$T/source" --ref v2 --as other
says err "v2"
# A repository that could hang us helps nobody to order anything, and keeps nobody from reading the files.
mkfifo "$T/source/.git/packed-refs"
run 0 ingest "$T/source" --as new
run 1 ingest "$T/source@v1" --as old
says err "packed-refs in it is neither a file nor a directory"
stop_daemon
