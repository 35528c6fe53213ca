#!/bin/bash
# e2e: a daemon without a model starts, shows what it has, and refuses the rest by the name of the key that is missing
. "$(dirname "$0")/lib.sh"

MODEL='' configure
text "$T/source/a.txt" 5 1
start_daemon
run 0 status
says out "model    none: set model.path"
run 0 jobs
run 0 corpora
for words in "ask x y" "ingest $T/source --as x"; do
	# shellcheck disable=SC2086
	run 1 $words
	says err "model.path"
done
if command -v curl >/dev/null; then
	for path in api/v1/ask api/v1/corpora/x/ingest; do
		body='{"source":"/tmp"}'
		[ $path = api/v1/ask ] && body='{"corpus":"x","question":"y"}'
		status=$(curl -s -o "$T/out" -w '%{http_code}' --unix-socket "$T/run/quire.sock" -d "$body" "http://localhost/$path")
		[ "$status" = 503 ] || fail "$path answers with $status"
		says out '"code":"unavailable"'
	done
	curl -s -o "$T/out" -w '%{http_code}' --unix-socket "$T/run/quire.sock" http://localhost/readyz | grep -qx 503 ||
		fail "ready without a model"
	curl -s -o "$T/out" -w '%{http_code}' --unix-socket "$T/run/quire.sock" http://localhost/healthz | grep -qx 200 ||
		fail "not healthy"
fi
stop_daemon

# A model that does not open is the same, with the reason.
mkdir "$T/model"
MODEL=$T/model configure
start_daemon
run 0 status
says out "model    failed"
run 1 ask x y
says err "model.path"
says err "$T/model/config.json"
stop_daemon
