#!/bin/bash
# e2e: the trained model quotes a line of what was ingested, says "not found" when it is gone, and the same after a restart
. "$(dirname "$0")/lib.sh"

mkdir -p "$T/source"
cp config/err.h config/log.h config/units.h "$T/source/"
SCRATCH=16MiB
# One that it gets right: it is wrong about most of these files' functions (make demo counts them).
LINE='int err_exit_status(enum err_code code);'

answers()
{
	grep -qxF -- "$1" "$T/out" || fail "the answer is not: $1"
}

for form in bf16 fp8; do
	MODEL=$ROOT_DIR/tests/pocket/model/$form
	rm -rf "$T/store"
	configure
	start_daemon
	run 0 ingest "$T/source" --as "with"
	run 0 ask "with" "Where is err_exit_status" --max-tokens 60
	answers "$LINE"
	run 0 ask "with" "Where is err_frobnicate" --max-tokens 60
	answers "not found"
	stop_daemon
	start_daemon
	run 0 ask "with" "Where is err_exit_status" --max-tokens 60
	answers "$LINE"
	stop_daemon
done

# It read the line and does not know it by heart: without the line there is no such answer.
grep -vF "$LINE" config/err.h >"$T/source/err.h"
rm -rf "$T/store"
configure
start_daemon
run 0 ingest "$T/source" --as without
run 0 ask without "Where is err_exit_status" --max-tokens 60
! grep -qxF -- "$LINE" "$T/out" || fail "a line is quoted that was not read"
