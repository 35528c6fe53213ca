# Common parts of the end-to-end tests, to be sourced: a directory of our own with a configuration, a daemon in it,
# and the command line pointed at it. Whatever way a test ends, nothing it started is left behind.
#
#   $T        the directory; removed at the end unless KEEP=1
#   $T/out, $T/err   what the last `run` printed
#   $T/log    what the daemons of this test logged

set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
ROOT_DIR=$PWD
: "${BUILD:=build}"
case $BUILD in /*) ;; *) BUILD=$ROOT_DIR/$BUILD ;; esac
QUIRE=$BUILD/quire
MODEL=$ROOT_DIR/tests/golden/glm52

unset QUIRE_SOCKET XDG_CONFIG_HOME
export QUIRE_BACKENDS=/nonexistent # the processor computes, whatever this machine has, unless a test says otherwise
# A daemon that is told to stop goes after two seconds without the thread that is still in a step: no leak to report.
export TSAN_OPTIONS="${TSAN_OPTIONS:-} report_thread_leaks=0"
T=$(mktemp -d "${TMPDIR:-/tmp}/quire-e2e.XXXXXX")
DAEMON=
LEFT=

clean_up()
{
	LEFT="$DAEMON $LEFT"
	kill_clients
	[ -n "${KEEP:-}" ] || rm -rf "$T"
}
trap clean_up EXIT
trap 'exit 143' TERM INT

fail()
{
	echo "FAILED: $*" >&2
	for f in out err log; do
		[ -s "$T/$f" ] && sed "s/^/  $f: /" "$T/$f" | tail -n 40 >&2
	done
	exit 1
}

# configure [LINE...]: a configuration with the tiny model and these further lines; CONTEXT=N limits the context.
configure()
{
	{
		echo "version: 1"
		[ -z "${MODEL:-}" ] || echo "model: {path: $MODEL, latents: ${LATENTS:-bf16}}"
		echo "store: {path: $T/store}"
		echo "server: {socket: $T/run/quire.sock, max_queue: ${MAX_QUEUE:-64}}"
		echo "compute: {threads: 2}"
		echo "ingest: {scratch: ${SCRATCH:-256KiB}}" # a few hundred tokens at a time: chunks to wait for and to lose
		[ -z "${CONTEXT:-}" ] || echo "context: {max_tokens: $CONTEXT}"
		for line; do echo "$line"; done
	} >"$T/quire.yaml"
}

quire()
{
	"$QUIRE" --config "$T/quire.yaml" "$@"
}

# background NAME WORDS...: `quire WORDS` in the background as process $CLIENT, its outputs in $T/NAME and $T/NAME.err.
background()
{
	local name=$1
	shift
	"$QUIRE" --config "$T/quire.yaml" "$@" >"$T/$name" 2>"$T/$name.err" </dev/null &
	CLIENT=$!
	LEFT="$LEFT $CLIENT"
}

# finish STATUS: $CLIENT must end with it.
finish()
{
	local status=0
	wait "$CLIENT" || status=$?
	[ $status = "$1" ] || fail "a client ended with $status, not $1"
}

# kill_clients: all that are in the background.
kill_clients()
{
	for pid in $LEFT; do
		kill -KILL "$pid" 2>/dev/null || true
		wait "$pid" 2>/dev/null || true
	done
	LEFT=
}

# start_daemon: in the background, until it is ready with its model (if it has one). $WRAP may stand before it.
start_daemon()
{
	local seen
	seen=$(grep -c ' ready version=' "$T/log" 2>/dev/null || true)
	# shellcheck disable=SC2086
	${WRAP:-} "$QUIRE" serve --config "$T/quire.yaml" 2>>"$T/log" &
	DAEMON=$!
	for _ in $(seq 600); do
		if [ "$(grep -c ' ready version=' "$T/log" || true)" != "${seen:-0}" ] &&
			quire status >"$T/status" 2>/dev/null && ! grep -q '^model    loading' "$T/status"; then
			return 0
		fi
		kill -0 "$DAEMON" 2>/dev/null || fail "the daemon ended at its start"
		sleep 0.1
	done
	fail "the daemon is not ready after a minute"
}

# stop_daemon: as a service manager does; it must end well, and soon.
stop_daemon()
{
	local began status=0
	began=$(date +%s%N)
	kill -TERM "$DAEMON"
	wait "$DAEMON" || status=$?
	DAEMON=
	[ $status = 0 ] || fail "the daemon ended with status $status"
	[ $((($(date +%s%N) - began) / 1000000)) -lt "${STOP_MS:-2500}" ] || fail "the daemon took too long to stop"
}

kill_daemon()
{
	kill -KILL "$DAEMON"
	wait "$DAEMON" 2>/dev/null || true
	DAEMON=
}

# run STATUS WORDS...: `quire WORDS` must end with STATUS.
run()
{
	local expected=$1 status=0
	shift
	quire "$@" >"$T/out" 2>"$T/err" </dev/null || status=$?
	[ $status = "$expected" ] || fail "quire $* ended with $status, not $expected"
}

# says FILE TEXT: a fixed text that the file must have.
says()
{
	grep -qF -- "$2" "$T/$1" || fail "$1 does not say: $2"
}

# field NAME: the first number of that name in a JSON line on stdin.
field()
{
	sed -n "s/.*\"$1\":\\([0-9.]*\\).*/\\1/p" | head -n 1
}

# text FILE LINES SEED: words that are the same each time, some seven tokens a line.
text()
{
	mkdir -p "$(dirname "$1")"
	awk -v n="$2" -v seed="$3" 'BEGIN {
		split("queue reader latent token expert router cache span layer index page store model query", w, " ")
		for (i = 1; i <= n; i++)
			printf "%s %s_%d holds %s\n", w[(i * 7 + seed) % 14 + 1], w[(i * 3) % 14 + 1], i % 97, w[(i * 5 + seed) % 14 + 1]
	}' >"$1"
}

# ended JOB: it neither waits nor runs any more; what was said of it is in $T/job.
ended()
{
	quire jobs "$1" >"$T/job" || fail "nothing is known of job $1"
	! grep -q '^state     \(queued\|running\)' "$T/job"
}

# until_progress JOB TOKENS: wait until so many tokens of a job are done.
until_progress()
{
	local done_tokens
	for _ in $(seq 600); do
		done_tokens=$(quire --json jobs "$1" | field done_tokens)
		[ "${done_tokens:-0}" -ge "$2" ] && return 0
		! ended "$1" || fail "job $1 ended before it was at $2 tokens"
		sleep 0.05
	done
	fail "job $1 does not get to $2 tokens"
}

# until_state JOB STATE
until_state()
{
	for _ in $(seq 600); do
		quire jobs "$1" >"$T/job" 2>&1 && grep -q "^state     $2" "$T/job" && return 0
		sleep 0.1
	done
	fail "job $1 does not become $2: $(cat "$T/job")"
}

# endless_model: a copy of the tiny model whose answers do not end by themselves. The rows of the head that belong to
# stop ids become zeros, and a logit of zero is never the highest here.
endless_model()
{
	local shard header entry begin id
	mkdir -p "$T/endless"
	cp "$MODEL"/*.json "$MODEL"/*.safetensors "$T/endless/"
	shard=$T/endless/$(grep -o '"lm_head.weight": *"[^"]*"' "$MODEL/model.safetensors.index.json" | cut -d '"' -f 4)
	header=$(od -An -t u8 -N 8 "$shard" | tr -d ' ')
	entry=$(head -c $((header + 8)) "$shard" | tail -c "$header" | grep -o '"lm_head.weight":{[^}]*}')
	begin=$(echo "$entry" | sed 's/.*"data_offsets": *\[\([0-9]*\).*/\1/')
	row=$(($(echo "$entry" | sed 's/.*"shape": *\[[0-9]*, *\([0-9]*\).*/\1/') * 2))
	for token in endoftext user observation; do
		id=$(tr -d '\n ' <"$MODEL/tokenizer.json" | grep -o "{[^{}]*\"<|$token|>\"[^{}]*}" | grep -o '"id":[0-9]*' | head -n 1 | cut -d : -f 2)
		dd if=/dev/zero of="$shard" bs=1 seek=$((header + 8 + begin + id * row)) count=$row conv=notrunc status=none
	done
	MODEL=$T/endless
}
