#!/bin/bash
# The questions of BENCH=pocket over a million tokens, as a user would ask them: quired ingests the documents, each question goes
# to it by itself, and an answer is right if it is the line and nothing else. Takes an hour or two; whenever it is ended, the next call
# goes on with the ingest or the questions where they were.
#
#   make bench BENCH=pocket-1m [ARGS="--questions FILE.tar.xz --work DIR --model DIR"]
#
#   --questions  tests/pocket/questions/1M.tar.xz, or another that tests/pocket/questions.py wrote
#   --work       build/pocket-1m: the documents, the store, what was answered. Remove it to begin anew
#   --model      tests/pocket/model/bf16
#
#   pocket.accuracy       by task: exact answers ("asked" of them)
#   pocket.cited          of exact answers that quote a line, those whose place quired found in what it had read
#   pocket.ingest_s       seconds, all calls together; tokens beside it
#   pocket.question_s     median seconds of a question, the command line's start included
set -eu
cd "$(dirname "$0")/../.."
: "${BUILD:=build}"
QUESTIONS=tests/pocket/questions/1M.tar.xz WORK=build/pocket-1m MODEL=tests/pocket/model/bf16
while [ $# -gt 1 ]; do
	case $1 in
	--questions) QUESTIONS=$2 ;;
	--work) WORK=$2 ;;
	--model) MODEL=$2 ;;
	*) break ;;
	esac
	shift 2
done
[ $# = 0 ] || { echo "usage: pocket-1m.sh [--questions FILE.tar.xz] [--work DIR] [--model DIR]; not: $*" >&2; exit 2; }
[ -r "$QUESTIONS" ] || { echo "$QUESTIONS cannot be read; tests/pocket/questions.py --context 1M writes one" >&2; exit 1; }
CONTEXT=$(basename "$QUESTIONS" .tar.xz)
QUIRE=$PWD/$BUILD/quire
[ -x "$QUIRE" ] || { echo "$QUIRE is not there: make all" >&2; exit 1; }
MODEL=$(cd "$MODEL" && pwd)
DAEMON=

# What was measured belongs to this model and these documents.
stamp=$(cat "$QUESTIONS" "$MODEL/model.safetensors" | sha256sum | cut -c 1-64)
mkdir -p "$WORK"
WORK=$(cd "$WORK" && pwd)
if [ ! -e "$WORK/stamp" ]; then
	tar -xJf "$QUESTIONS" -C "$WORK"
	echo "$stamp" >"$WORK/stamp"
elif [ "$(cat "$WORK/stamp")" != "$stamp" ]; then
	echo "$WORK is of another model or other questions: remove it, or give --work" >&2
	exit 1
fi

# A Unix socket's path holds 107 bytes.
SOCKET_DIR=$(mktemp -d)
cat >"$WORK/quire.yaml" <<END
version: 1
model: {path: $MODEL}
store: {path: $WORK/store}
server: {socket: $SOCKET_DIR/quire.sock}
END
# The command line would ask there, not here.
unset QUIRE_SOCKET

quire() { "$QUIRE" --config "$WORK/quire.yaml" "$@"; }
now() { date +%s.%N; }

# ingest_seconds BEGAN: what this call adds to the time of the ingest.
ingest_seconds() { echo "$(now) $1" | awk '{ printf "%.1f\n", $1 - $2 }' >>"$WORK/ingest_s"; }

INGESTING=
end()
{
	status=$?
	trap '' INT TERM
	[ -z "$INGESTING" ] || ingest_seconds "$INGESTING"
	if [ -n "$DAEMON" ]; then
		kill -TERM "$DAEMON" 2>/dev/null || true
		wait "$DAEMON" 2>/dev/null || true
	fi
	rm -rf "$SOCKET_DIR"
	[ $status = 0 ] || echo "pocket-1m ended early; the same command goes on. quired's log: $WORK/quired.log" >&2
}
trap end EXIT
trap 'exit 130' INT TERM

"$PWD/$BUILD/quired" --config "$WORK/quire.yaml" 2>>"$WORK/quired.log" &
DAEMON=$!
until quire status 2>/dev/null | grep -q '^model    ready'; do
	kill -0 $DAEMON 2>/dev/null || { echo "quired did not start: $(tail -n 1 "$WORK/quired.log")" >&2; exit 1; }
	sleep 0.2
done

if [ ! -e "$WORK/ingested" ]; then
	INGESTING=$(now)
	# A job that was under way goes on, and this one then finds everything there.
	quire ingest "$WORK/sources" --as documents >&2
	ingest_seconds "$INGESTING"
	INGESTING=
	quire --json corpora | sed -n 's/.*"tokens":\([0-9]*\).*/\1/p' >"$WORK/ingested"
fi

touch "$WORK/answers"
skip=$(wc -l <"$WORK/answers")
n=0
while IFS= read -r task && IFS= read -r question && IFS= read -r answer; do
	n=$((n + 1))
	[ $n -gt "$skip" ] || continue
	began=$(now)
	quire ask documents "$question" --max-tokens 80 >"$WORK/said" 2>>"$WORK/quired.log" </dev/null
	took=$(echo "$(now) $began" | awk '{ print $1 - $2 }')
	exact=0 cited=0
	if [ "$(sed -n 1p "$WORK/said")" = "$answer" ] && [ "$(grep -vc '^  ' "$WORK/said")" = 1 ]; then exact=1; fi
	if grep -q '^  .*  verified' "$WORK/said"; then cited=1; fi
	echo "$task $exact $cited $took" >>"$WORK/answers"
	[ $((n % 25)) != 0 ] || echo "$n questions, $(awk '{ n += $2 } END { print n }' "$WORK/answers") right" >&2
done <"$WORK/questions.txt"

MACHINE="$(awk -F ': ' '/^model name/ { print $2; exit }' /proc/cpuinfo), $(nproc) processors, $(uname -sm)"
sort -k 1,1 -s "$WORK/answers" | awk -v context="$CONTEXT" -v machine="$MACHINE" '
	function line(name, value, unit, rest) {
		printf "{\"bench\":\"pocket.%s\",\"value\":%.4g,\"unit\":\"%s\",%s\"context\":\"%s\",\"machine\":\"%s\"}\n", name, value, unit, rest,
		       context, machine
	}
	function task() { if (asked) line("accuracy", exact / asked, "fraction", "\"task\":\"" of "\",\"asked\":" asked ",") }
	$1 != of { task(); of = $1; asked = exact = 0 }
	{ asked++; exact += $2 }
	$1 != "missing" && $2 { quoted++; cited += $3 }
	END { task(); if (quoted) line("cited", cited / quoted, "fraction", "\"answers\":" quoted ",") }'
awk '{ print $4 }' "$WORK/answers" | sort -g | awk -v c="$CONTEXT" -v m="$MACHINE" '{ t[NR] = $1 } END {
	printf "{\"bench\":\"pocket.question_s\",\"value\":%.3g,\"unit\":\"s\",\"questions\":%d,\"context\":\"%s\",\"machine\":\"%s\"}\n",
	       t[int((NR + 1) / 2)], NR, c, m }'
awk -v tokens="$(cat "$WORK/ingested")" -v c="$CONTEXT" -v m="$MACHINE" '{ s += $1 } END {
	printf "{\"bench\":\"pocket.ingest_s\",\"value\":%.1f,\"unit\":\"s\",\"tokens\":%d,\"context\":\"%s\",\"machine\":\"%s\"}\n", s, tokens, c, m
}' "$WORK/ingest_s"
