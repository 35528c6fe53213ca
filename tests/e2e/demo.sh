#!/bin/bash
# What `make demo` runs after the build: quire reads some of its own sources, stops, starts again, and answers
# questions about them from what it had stored; each answer is compared with the sources. Everything it writes lies
# below build/demo; nothing is left running.
set -eu
cd "$(dirname "$0")/../.."
: "${BUILD:=build}"
case $BUILD in /*) ;; *) BUILD=$PWD/$BUILD ;; esac
DEMO=$PWD/build/demo
PATH=$BUILD:$PATH
unset QUIRE_SOCKET
DAEMON=

end()
{
	status=$?
	if [ -n "$DAEMON" ]; then
		kill -TERM "$DAEMON" 2>/dev/null || true
		wait "$DAEMON" 2>/dev/null || true
	fi
	[ -z "${SOCKET_DIR:-}" ] || rm -rf "$SOCKET_DIR"
	if [ $status != 0 ]; then
		echo "the demo failed; its daemon said:" >&2
		tail -n 20 "$DEMO/quired.log" >&2 || true
	fi
}
trap end EXIT
trap 'exit 130' INT TERM

say() { printf '\n# %s\n' "$*"; }

# show WORDS...: a command as one would type it, and what it does.
show()
{
	printf '$ quire'
	for word; do
		case $word in *[!A-Za-z0-9./_-]*) printf ' "%s"' "$word" ;; *) printf ' %s' "${word#"$PWD"/}" ;; esac
	done
	echo
	timeout 120 quire --config "$DEMO/quire.yaml" "$@" 2>&1
}

start_daemon()
{
	quired --config "$DEMO/quire.yaml" 2>>"$DEMO/quired.log" &
	DAEMON=$!
	for _ in $(seq 200); do
		if quire --config "$DEMO/quire.yaml" status 2>/dev/null | grep -q '^model    ready'; then
			return 0
		fi
		kill -0 "$DAEMON" 2>/dev/null || { echo "the daemon did not start" >&2; exit 1; }
		sleep 0.1
	done
	echo "the daemon is not ready after 20 s" >&2
	exit 1
}

stop_daemon()
{
	kill -TERM "$DAEMON"
	wait "$DAEMON"
	DAEMON=
}

rm -rf "$DEMO"
mkdir -p "$DEMO/sources"
MODEL=$PWD/tests/pocket/model/bf16
FILES="config/*.h"
echo "The model: tests/pocket/model, GLM-5.2's architecture with 10.6 million parameters, trained to find a line and quote it."
# shellcheck disable=SC2086
cp $FILES "$DEMO/sources/"

# A Unix socket's path holds 107 bytes; a deep working directory may not leave room for ours.
SOCKET=$DEMO/quire.sock
if [ ${#SOCKET} -gt 100 ]; then
	SOCKET_DIR=$(mktemp -d)
	SOCKET=$SOCKET_DIR/quire.sock
fi
cat >"$DEMO/quire.yaml" <<END
version: 1
model: {path: $MODEL}
store: {path: $DEMO/store}
server: {socket: $SOCKET}
END

say "quired reads some of its sources: $FILES"
start_daemon
show ingest "$DEMO/sources" --as headers
show corpora

say "it stops, and another one starts: what was computed is on disk"
stop_daemon
start_daemon

# places TEXT: the lines of the sources that read so, but for indentation.
places()
{
	(cd "$DEMO/sources" && TEXT=$1 awk '{ line = $0; sub(/^[ \t]+/, "", line) }
		line == ENVIRON["TEXT"] { print FILENAME ":" FNR; n++ } END { exit !n }' *)
}

# agrees ANSWER CITATIONS: the place that the daemon gives is one of those where the sources have the line, and it gives
# none where they have none.
agrees()
{
	if [ -n "$2" ]; then places "$1" | grep -qxF -- "$2"; else ! places "$1" >/dev/null; fi
}

# cited FILE: PATH:LINE of the whole line that an answer quotes, out of what quire printed.
cited() { sed -n 's/^  \([^ ]*:[0-9]*\)  verified.*/\1/p' "$1" | head -n 1; }

# ask QUESTION: the answer, and where it stands. The model may be wrong; the sources are not.
ask()
{
	show ask headers "$1" --max-tokens 60 >"$DEMO/answer"
	cat "$DEMO/answer"
	answer=$(sed -n 2p "$DEMO/answer")
	if [ "$answer" = "not found" ]; then
		echo "# lines that have ${1##* }: $(cat "$DEMO"/sources/* | grep -cwF -- "${1##* }")"
	elif [ -z "$(cited "$DEMO/answer")" ]; then
		echo "# no line reads so: a misquotation"
	fi
}

say "only the question is computed; the rest comes from the store"
QUESTION="Where is err_exit_status"
ask "$QUESTION"
ask "Where is duration_parse"
ask "Complete: void log_set"
ask "Where is err_frobnicate"
ask "Where is json_parse"
right=0 asked=0 wrong=0
for name in $(sed -n 's/^[a-z][a-z0-9_ *]*[ *]\([a-z0-9_]*\)(.*/\1/p' "$DEMO"/sources/*); do
	quire --config "$DEMO/quire.yaml" ask headers "Where is $name" --max-tokens 60 >"$DEMO/answer" 2>/dev/null
	answer=$(head -n 1 "$DEMO/answer")
	place=$(cited "$DEMO/answer")
	asked=$((asked + 1))
	case $answer in *"$name"*) [ -z "$place" ] || right=$((right + 1)) ;; esac
	agrees "$answer" "$place" || wrong=$((wrong + 1))
done
echo "# asked for every function that the files declare, it quotes $right of $asked right;"
echo "# of the places that quired gives for its answers, grep finds $wrong wrong or missing"
[ $wrong = 0 ] || exit 1
quire --config "$DEMO/quire.yaml" --json ask headers "$QUESTION" --max-tokens 1 >"$DEMO/usage"
quire --config "$DEMO/quire.yaml" --json corpora >"$DEMO/corpora"
number() { sed -n "s/.*\"$1\":\\([0-9]*\\).*/\\1/p" "$2" | head -n 1; }
if [ "$(number cached_tokens "$DEMO/usage")" != "$(number tokens "$DEMO/corpora")" ]; then
	echo "not every token of the corpus came from the store" >&2
	exit 1
fi
show status
stop_daemon
say "done: $DEMO holds the configuration, the store ($(du -sh "$DEMO/store" | cut -f 1)) and the daemon's log"
