#!/bin/bash
# e2e: the doctor: without a daemon, beside one, beside one that hangs or has no model, and when something is broken
. "$(dirname "$0")/lib.sh"

configure
run 0 doctor
says out "warn  socket     no daemon answers at $T/run/quire.sock"
says out "ok    model      $MODEL: glm_moe_dsa"
says out "store will be made in $T"
says out " 0 fail"
[ ! -e "$T/store" ] || fail "the doctor made the store"

# Beside a daemon: the same engine, and nothing is left in its store.
start_daemon
run 0 doctor
says out "answers at $T/run/quire.sock, process $DAEMON, model ready"
says out "$T/store ("
engine=$(sed -n 's/^engine   cpu, \([a-z0-9]*\), \([0-9]*\) threads, \(.*\)$/\1 \2 \3/p' "$T/status")
[ "$(sed -n 's/^ok    engine     cpu, \([a-z0-9]*\) (.*), \([0-9]*\) threads, \(.*\)$/\1 \2 \3/p' "$T/out")" = "$engine" ] ||
	fail "the daemon has another engine: $engine"
[ -z "$(find "$T/store" -name '.quire-doctor*')" ] || fail "something was left in the store"

# One that hangs is found out within seconds.
kill -STOP "$DAEMON"
run 1 doctor
says out "fail  socket     the daemon at $T/run/quire.sock has not answered within 3000 ms"
kill -CONT "$DAEMON"
stop_daemon

# A model that does not open: by its files, and by the daemon that tried.
mkdir "$T/model"
MODEL=$T/model configure
start_daemon
run 1 doctor
says out "fail  model      "
says out "fail  socket     quired"
says out "without its model: "
stop_daemon

# A configuration that cannot be read, for a program.
configure "query: {top_k: many}"
run 1 --json doctor
says out '{"type":"finding","v":1,"level":"fail","name":"config"'
tail -n 1 "$T/out" | grep -q '^{"type":"summary","v":1,"ok":[0-9]*,"warn":[0-9]*,"fail":1}$' || fail "no summary"
