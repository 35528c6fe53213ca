#!/bin/bash
# The store alone, killed with SIGKILL at random points while it writes, and opened again: the old state whole, or the new.
set -eu
cd "$(dirname "$0")/../.."
: "${BUILD:=build}" "${KILLS:=3000}"
${MAKE:-make} -s "$BUILD/tests/test_cache" >&2
mkdir -p "$BUILD/soak"
if QUIRE_TEST_KILLS=$KILLS "$BUILD/tests/test_cache" >"$BUILD/soak/store_kills.log" 2>&1; then damaged=0; else damaged=1; fi
[ $damaged = 0 ] || tail -n 40 "$BUILD/soak/store_kills.log" >&2
echo "{\"soak\":\"store_kills\",\"kills\":$KILLS,\"stores_damaged\":$damaged}"
exit $damaged
