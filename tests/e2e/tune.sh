#!/bin/bash
# e2e: tune: what an expert takes is measured, printed and kept, on the processor alone where there is no device, which is said
. "$(dirname "$0")/lib.sh"

configure
mkdir "$T/none"
export QUIRE_BACKENDS=$T/none # whatever this machine has

run 0 tune "$MODEL"
says out "one expert: BF16, 44 to 24 and back, compute bf16"
says out ", 2 threads, "
says out "no device: "
says out "tokens      host ms"
[ "$(grep -c '^ *[0-9][0-9]* *[0-9.][0-9.]*$' "$T/out")" = 10 ] || fail "the table has not ten lines"
says out "   512 "
grep -q 'device ms\|upload\|break-even' "$T/out" && fail "there is no device, and something is said of one"
says out "kept in $T/store/tune.json"
[ ! -s "$T/err" ] || fail "something is amiss"

# Another key is another entry, the same one is replaced; a program gets one line.
run 0 tune "$MODEL" --json --threads 1
[ "$(wc -l <"$T/out")" = 1 ] || fail "what was measured is not one line"
says out '{"type":"tune","v":1,"made":"20'
says out ', 1 threads, '
says out '"device":null,"no_device":"'
says out '"break_even_tokens":null'
says out '{"tokens":512,"host_s":'
run 0 tune "$MODEL" --threads 1
[ "$(grep -c '"expert_dim": 24' "$T/store/tune.json")" = 2 ] || fail "$(cat "$T/store/tune.json")"

# A damaged file is named, and there is a good one afterwards.
head -c 300 "$T/store/tune.json" >"$T/part"
cp "$T/part" "$T/store/tune.json"
run 0 tune "$MODEL"
says err "$T/store/tune.json"
[ "$(grep -c '"expert_dim": 24' "$T/store/tune.json")" = 1 ] || fail "$(cat "$T/store/tune.json")"
run 0 tune "$MODEL"
[ ! -s "$T/err" ] || fail "the file is still damaged"

# A daemon starts with that in its store, and the store is whole.
start_daemon
run 0 check --read-data
stop_daemon

# With a device, a simulated one, there are its columns, and what the two are compared for.
export QUIRE_BACKENDS=$BUILD/tests
run 0 tune "$MODEL" --device sim:0
says out "device: sim:0, "
says out "tokens      host ms    device ms     moved ms  cheaper"
[ "$(grep -c '^ *[0-9][0-9]* *[0-9.]* *[0-9.]* *[0-9.]*  [cm]o[mv][a-z]*$' "$T/out")" = 10 ] || fail "the table has not ten lines"
grep -q '^upload [0-9.]* ms; \(no break-even\|break-even: from [0-9]* tokens on\)' "$T/out" || fail "what comes of it is not said"
run 0 tune "$MODEL" --device sim:0 --json
says out '"device":{"name":"sim:0","model":"'
says out '"no_device":null,"upload_s":'
says out '"moved_s":'
[ "$(grep -c '"device_s"' "$T/store/tune.json")" = 1 ] || fail "one entry with a device, please"
run 4 tune "$MODEL" --device sim:99
says err "no such device"
export QUIRE_BACKENDS=$T/none

# What was asked for and cannot be had.
run 1 tune "$MODEL" --device cuda:0
says err "libquire_cuda.so"
run 2 tune "$MODEL" --device gpu
says err "gpu"
run 2 tune "$MODEL" --threads 0
says err "--threads"
run 4 tune "$T/nowhere"
chmod 500 "$T/store"
[ "$(id -u)" = 0 ] || run 10 tune "$MODEL"
chmod 700 "$T/store"
