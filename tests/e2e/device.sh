#!/bin/bash
# e2e: device: a daemon with a device beside the processor: the same corpus and the same answers, and one that fails is told; its kernels, race check on
. "$(dirname "$0")/lib.sh"

# The simulated device; tests/device.sh says another, and where its library is: then the parts that need a simulated one are left out.
: "${DEVICE:=sim:0}" "${DEVICE_AT:=$BUILD/tests}"

text "$T/docs/a.txt" 80 1
text "$T/docs/b.txt" 60 2
text "$T/more/c.txt" 120 3

# answer FILE: what a daemon makes of the documents, and how it answers.
answer()
{
	run 0 ingest "$T/docs" --as docs
	run 0 ask docs "which queue holds the reader?" --max-tokens 24
	cp "$T/out" "$T/$1"
}

# ends_broken: the daemon, by itself, with the status of a failure.
ends_broken()
{
	local status=0
	wait "$DAEMON" || status=$?
	DAEMON=
	[ $status = 1 ] || fail "the daemon ended with $status when its device failed"
	tail -n 5 "$T/log" | grep -q "the daemon ends, so that another can be started: device sim:0: " || fail "nobody says why"
}

configure "tiers: {device: none}"
start_daemon
answer plain
run 0 ingest "$T/more" --as more
run 0 ask more "which queue holds the reader?" --max-tokens 24
cp "$T/out" "$T/more.plain"
stop_daemon

# The same store: the identity does not change with the device, so that the corpus is the same one.
export QUIRE_BACKENDS=$DEVICE_AT
configure "tiers: {host_experts: 120KB, device: \"$DEVICE\", device_experts: 300KB}"
start_daemon
says log "what experts take on this machine is measured"
run 0 ask docs "which queue holds the reader?" --max-tokens 24
cmp -s "$T/out" "$T/plain" || fail "the answer differs with a device"
run 0 status
says out ": room for "
[ "$DEVICE" != sim:0 ] || says out "device   simulated device: room for "
[ "$(quire --json status | grep -o '"device":{[^}]*}' | field hits)" -gt 0 ] || fail "nothing was computed on the device"
stop_daemon

# A store of its own, made with the device from the first token on.
sed -i "s|store: {path: $T/store}|store: {path: $T/other}|" "$T/quire.yaml"
start_daemon
answer device
cmp -s "$T/device" "$T/plain" || fail "what was ingested with a device is answered from otherwise"
quire --json status | grep -o '"device":{[^}]*}' # for the log of a device's check
stop_daemon
[ "$DEVICE" = sim:0 ] || exit 0

# Its failure in an ingest ends the daemon, and the ingest goes on in the next one.
QUIRE_SIM_FAIL=experts:200 start_daemon
run 0 ingest "$T/more" --as more --detach
job=$(grep -o 'j-[0-9]*' "$T/out" | head -n 1)
ends_broken
start_daemon
until_state "$job" done
run 0 ask more "which queue holds the reader?" --max-tokens 24
cmp -s "$T/out" "$T/more.plain" || fail "an ingest that a failed device interrupted gives another answer"
stop_daemon

# Its first failure ends the question with a sentence that names it, and the daemon, so that another can be started.
export QUIRE_SIM_FAIL=experts:400
start_daemon
for _ in 1 2 3 4 5 6; do
	quire ask docs "which queue holds the reader?" --max-tokens 24 >"$T/out" 2>"$T/err" || break
done
says err "device sim:0: "
ends_broken
unset QUIRE_SIM_FAIL
start_daemon
run 0 ask docs "which queue holds the reader?" --max-tokens 24
cmp -s "$T/out" "$T/plain" || fail "the answer differs after a failure"
stop_daemon

# A device that is not there is told where it was asked for, and no matter where nobody did.
configure "tiers: {device: \"sim:7\"}"
start_daemon
says log "sim:7: there is no such device"
run 1 ask docs "who?"
says err "sim:7"
stop_daemon
mkdir "$T/none"
export QUIRE_BACKENDS=$T/none
configure
start_daemon
says log "the processor computes everything: "
stop_daemon

# The kernels themselves: bits, and no two threads in each other's way.
mkdir "$T/race"
cp "$BUILD/tests/libquire_simrace.so" "$T/race/libquire_sim.so"
for where in "$BUILD/tests" "$T/race"; do
	QUIRE_BACKENDS=$where "$BUILD/tests/device" exact --small sim:0 >"$T/out" 2>"$T/err" || fail "kernels differ, or are at fault"
	says out " combinations, 0 differ"
done
