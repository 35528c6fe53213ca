#!/bin/bash
# Every fuzzer for SECONDS_EACH, from the committed corpus and what earlier runs found.
set -eu
cd "$(dirname "$0")/../.."
: "${ROOT:=build}" "${SECONDS_EACH:=200}"
export SECONDS_EACH
mkdir -p "$ROOT/soak"
status=0
${MAKE:-make} fuzz >"$ROOT/soak/fuzz.log" 2>&1 || status=1
sed -n "s/^ok .*fuzz_\([a-z_]*\): \([0-9]*\) executions, \([0-9.]*\) s.*/{\"soak\":\"fuzz_\1\",\"executions\":\2,\"seconds\":\3,\"findings\":0}/p" "$ROOT/soak/fuzz.log"
grep -h '^FAILED' "$ROOT/soak/fuzz.log" | sed 's/.*fuzz_\([a-z_]*\):.*/{"soak":"fuzz_\1","findings":1}/' || true
[ $status = 0 ] || tail -n 60 "$ROOT/soak/fuzz.log" >&2
exit $status
