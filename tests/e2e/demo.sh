#!/bin/bash
# What `make demo` shows, with a configuration, a socket and a store of its own below build/demo: real files are read
# once, the daemon is stopped and started again, and a question is answered from what the store kept. Ends within a
# minute and leaves nothing running.
set -eu
cd "$(dirname "$0")/../.."
: "${BUILD:=build}"
here=$PWD
demo=$here/build/demo
quire="$BUILD/quire --config build/demo/quire.yaml"
daemon=

stop()
{
	[ -z "$daemon" ] || { kill -TERM "$daemon" 2>/dev/null && wait "$daemon" || true; }
	daemon=
}
trap stop EXIT
trap 'exit 143' TERM INT

say() { printf '\n# %s\n' "$*"; }
show() { printf '$ quire %s\n' "$*"; }

start()
{
	"$BUILD/quired" --config build/demo/quire.yaml >>build/demo/quired.log 2>&1 &
	daemon=$!
	for _ in $(seq 100); do
		$quire status 2>/dev/null | grep -q '^model *ready' && return
		kill -0 "$daemon" 2>/dev/null || break
		sleep 0.1
	done
	echo "the daemon did not become ready:" >&2
	tail -n 5 build/demo/quired.log >&2
	exit 1
}

rm -rf "$demo"
mkdir -p "$demo/files"
if [ -f tests/pocket/model/config.json ]; then
	model=$here/tests/pocket/model
	say "The model: tests/pocket/model, small and trained to find and quote."
	files="config/err.h config/mem.h engine/layout.h"
	question="where is err_wrap defined?"
else
	model=$here/tests/golden/glm52
	say "The model: tests/golden/glm52, GLM-5.2's architecture with random weights. Its words are noise; everything" \
		"around them is real: the same code will run the full model."
	files="config/mem.h config/queue.h"
	question="who frees an arena?"
fi
cp $files "$demo/files"
cat >"$demo/quire.yaml" <<END
version: 1
model: {path: $model}
store: {path: $demo/store}
server: {socket: $demo/quire.sock}
END
chmod 600 "$demo/quire.yaml"

say "quired reads $(ls "$demo/files" | wc -l) files of this project once, and keeps what the model computed from them."
start
show ingest build/demo/files --as demo
$quire ingest "$demo/files" --as demo
show corpora
$quire corpora

say "It is stopped, and started again: what it knows now is what is on disk."
stop
start
show "ask demo \"$question\" --max-tokens 40"
$quire ask demo "$question" --max-tokens 40

say "The same question again: the same words, bit for bit, since a stored latent is the latent."
first=$($quire ask demo "$question" --max-tokens 40 2>/dev/null)
stop
start
second=$($quire ask demo "$question" --max-tokens 40 2>/dev/null)
if [ "$first" = "$second" ]; then echo "yes, equal"; else echo "NO: they differ"; exit 1; fi

show status
$quire status
stop
