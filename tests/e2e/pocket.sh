#!/bin/bash
# e2e: the trained model quotes a line of what was ingested, says "not found" when it is gone, and the same after a restart
. "$(dirname "$0")/lib.sh"

mkdir -p "$T/source"
cp config/err.h config/log.h config/units.h "$T/source/"
SCRATCH=16MiB
LINE='int err_exit_status(enum err_code code);'

answers()
{
	grep -qxF -- "$1" "$T/out" || fail "the answer is not: $1"
}

# What the daemon says of where the line stands is what grep says.
cites()
{
	PLACE=$(cd "$T/source" && grep -nxF -- "$LINE" err.h | sed 's/^\([0-9]*\):.*/err.h:\1/')
	grep -qxF -- "  $PLACE  verified" "$T/out" || fail "the line's place is not given: $PLACE"
}

for form in bf16 fp8; do
	MODEL=$ROOT_DIR/tests/pocket/model/$form
	rm -rf "$T/store"
	configure
	start_daemon
	run 0 ingest "$T/source" --as "with"
	run 0 ask "with" "Where is err_exit_status" --max-tokens 60
	answers "$LINE"
	cites
	run 0 ask "with" "Where is err_frobnicate" --max-tokens 60
	answers "not found"
	[ "$(wc -l <"$T/out")" = 1 ] || fail "an answer that quotes nothing has a citation"
	run 0 --json ask "with" "Where is err_frobnicate" --max-tokens 60
	says out '"finish_reason":"stop","snapshot":1,"citations":[]}'
	stop_daemon
	start_daemon
	run 0 ask "with" "Where is err_exit_status" --max-tokens 60
	answers "$LINE"
	cites
	run 0 --json ask "with" "Where is err_exit_status" --max-tokens 60
	says out '"citations":[{"kind":"lines","status":"verified","begin":0,"end":'${#LINE}',"text":"'"$LINE"'","places":1,"path":"err.h","first":'"${PLACE#*:}"
	stop_daemon
	# Looked up in what was read, whatever is on disk by now.
	start_daemon
	mv "$T/source" "$T/elsewhere"
	run 0 ask "with" "Where is err_exit_status" --max-tokens 60
	mv "$T/elsewhere" "$T/source"
	cites
	# Cut in the middle of a line, it is known by its beginning.
	run 0 ask "with" "Where is err_exit_status" --max-tokens 8
	grep -qxF -- "  $PLACE  verified" "$T/out" || fail "the beginning of the line has no place"
	stop_daemon
done

# And not that line alone: nearly all functions are found (make demo counts those of more files).
start_daemon
asked=0 right=0
for name in $(sed -n 's/^[a-z][a-z0-9_ *]*[ *]\([a-z0-9_]*\)(.*/\1/p' "$T"/source/*); do
	run 0 ask "with" "Where is $name" --max-tokens 60
	asked=$((asked + 1))
	if grep -q "^  .*  verified" "$T/out" && sed -n 1p "$T/out" | grep -qw -- "$name"; then right=$((right + 1)); fi
done
[ $asked -ge 20 ] && [ $((right * 10)) -ge $((asked * 8)) ] || fail "$right of $asked functions are quoted right"
run 0 ask "with" "Complete: void log_set" --max-tokens 60
answers "$(grep -F "void log_set" "$T/source/log.h")"
stop_daemon

# It read the line and does not know it by heart: without the line there is no such answer.
grep -vF "$LINE" config/err.h >"$T/source/err.h"
rm -rf "$T/store"
configure
start_daemon
run 0 ingest "$T/source" --as without
run 0 ask without "Where is err_exit_status" --max-tokens 60
! grep -qxF -- "$LINE" "$T/out" || fail "a line is quoted that was not read"
