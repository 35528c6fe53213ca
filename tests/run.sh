#!/bin/bash
# Runs what the Makefile has built, and counts. The last line of every part is "N passed, N failed", with
# ", N skipped" when there is something to say; the exit status is 1 when something failed.
#
#   run.sh programs  PROGRAM...    cmocka programs, as many at a time as there are processors; cases are counted
#   run.sh scripts   SCRIPT...     end-to-end scripts that have a "# e2e: purpose" line, as many at a time
#   run.sh fuzzers   PROGRAM...    each for SECONDS_EACH on tests/fuzz/corpus/NAME; new finds go to build/fuzz
#   run.sh soak      ANYTHING...   programs or scripts, JSON lines on stdout, all within 75 minutes
#   run.sh cuda_library [NVCC]    what `make CUDA=1` has built, if there was an nvcc: what it exports and what it needs
#   run.sh everything TEST...      what `make test` is: all parts, and TESTs under TSan
#
# A script or fuzzer passes with status 0 and is skipped with 77, its last line being the reason. Whatever hangs is
# ended after a while and has failed.
set -u
cd "$(dirname "$0")/.." || exit 1
: "${MAKE:=make}" "${ROOT:=build}" "${BUILD:=build}" "${SECONDS_EACH:=10}"
export BUILD

# A test may ask for more memory than there is, to see it refused. (detect_stack_use_after_return stays off: gcc 12
# misaligns the frames that hold AVX-512 registers with it.)
export ASAN_OPTIONS=allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1

passed=0 failed=0 skipped=0

now() { date +%s.%N; }
since() { echo "$(now) $1" | awk '{ printf "%.1f", $1 - $2 }'; }

# count PASSED FAILED SKIPPED
count() {
	passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
}

finish() {
	echo "$passed passed, $failed failed$([ $skipped = 0 ] || echo ", $skipped skipped")"
	[ $failed = 0 ]
	exit
}

# The sum of the numbers that cmocka prints after a word, as in "[  PASSED  ] 8 test(s)."
cases() { sed -n "s/^\[ *$2 *\] \([0-9]*\) test(s).*/\1/p" "$1" | awk '{ n += $1 } END { print n + 0 }'; }

# Run one cmocka program; leaves NAME.log and NAME.counts beside it.
one_program() {
	local start status p f s
	start=$(now)
	timeout -k 10 900 "$1" >"$1.log" 2>&1
	status=$?
	p=$(cases "$1.log" PASSED) f=$(($(cases "$1.log" FAILED) + $(cases "$1.log" ERROR))) s=$(cases "$1.log" SKIPPED)
	# A program that died, or that a sanitizer ended, has failed even if no case says so.
	[ $status != 0 ] && [ $f = 0 ] && f=1
	echo "$p $f $s $(since "$start") $status" >"$1.counts"
}

programs() {
	local p f s took status
	for program; do rm -f "$program.counts"; done
	[ $# = 0 ] || printf '%s\n' "$@" | xargs -P "$(nproc)" -n 1 tests/run.sh one_program
	for program; do
		read -r p f s took status <"$program.counts" || p=0 f=1 s=0 took=0 status=unknown
		count "$p" "$f" "$s"
		if [ "$f" = 0 ]; then
			echo "ok      $program: $p passed$([ "$s" = 0 ] || echo ", $s skipped"), $took s"
			grep -h '^skipped: ' "$program.log" | sort -u | sed 's/^/        /'
		else
			cat "$program.log"
			echo "FAILED  $program: $f failed, status $status, $took s"
		fi
	done
	finish
}

# judge STATUS LOG WHAT SECONDS
judge() {
	if [ "$1" = 0 ]; then
		count 1 0 0
		echo "ok      $3, $4 s"
	elif [ "$1" = 77 ]; then
		count 0 0 1
		echo "skipped $3: $(tail -n 1 "$2")"
	else
		count 0 1 0
		tail -n 200 "$2"
		echo "FAILED  $3: status $1, $4 s"
	fi
}

# Run one script; leaves NAME.log and NAME.counts in build/e2e.
one_script() {
	local start status=0 to
	to="$BUILD/e2e/$(basename "$1" .sh)" start=$(now)
	timeout -k 10 600 "$1" >"$to.log" 2>&1 || status=$?
	echo "$status $(since "$start")" >"$to.counts"
}

scripts() {
	local status took to tests
	mkdir -p "$BUILD/e2e"
	rm -f "$BUILD"/e2e/*.counts
	# valgrind.sh, by far the longest, would else be the last, with nothing beside it.
	mapfile -t tests < <(grep -l '^# e2e' "$@" | sort -r)
	[ ${#tests[@]} = 0 ] || printf '%s\n' "${tests[@]}" | xargs -P "$(nproc)" -n 1 tests/run.sh one_script
	for script in "${tests[@]}"; do
		to="$BUILD/e2e/$(basename "$script" .sh)"
		read -r status took <"$to.counts" || status=unknown took=0
		judge "$status" "$to.log" "$script" "$took"
	done
	finish
}

# Run one fuzzer; leaves NAME.log and NAME.counts beside it.
one_fuzzer() {
	local name start status
	name=$(basename "$1") name=${name#fuzz_} start=$(now) status=0
	mkdir -p "$ROOT/fuzz/$name"
	# What a fuzzer has found would else end it with 77.
	"$1" -error_exitcode=1 -max_total_time="$SECONDS_EACH" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
		-artifact_prefix="$ROOT/fuzz/$name-" "$ROOT/fuzz/$name" "tests/fuzz/corpus/$name" >"$1.log" 2>&1 || status=$?
	echo "$status $(since "$start")" >"$1.counts"
}

fuzzers() {
	local status took
	for program; do rm -f "$program.counts"; done
	[ $# = 0 ] || printf '%s\n' "$@" | xargs -P "$(nproc)" -n 1 tests/run.sh one_fuzzer
	for program; do
		read -r status took <"$program.counts" || status=unknown took=0
		judge "$status" "$program.log" \
			"$program: $(sed -n 's/^stat::number_of_executed_units: *//p' "$program.log") executions" "$took"
	done
	finish
}

soak() {
	local start left status worst=0
	SECONDS=0
	for item; do
		start=$(now) left=$((74 * 60 - SECONDS)) status=0
		if [ $left -gt 0 ]; then
			timeout -k 10 $left "$item" || status=$?
		else
			status=124
		fi
		[ $status = 0 ] || [ $status = 77 ] || worst=1
		echo "{\"soak\":\"$(basename "$item" .sh)\",\"status\":$status,\"seconds\":$(since "$start")}"
	done
	exit $worst
}

# finds_nothing WHAT FOUND: nothing found is a pass.
finds_nothing() {
	if [ -z "$2" ]; then
		count 1 0 0
		echo "ok      $1"
	else
		count 0 1 0
		echo "FAILED  $1: $2"
	fi
}

# That it was built says that no kernel spills and no compiler warns.
cuda_library() {
	local library=$BUILD/libquire_cuda.so
	if [ $# = 0 ]; then
		count 0 0 1
		echo "skipped: no nvcc of CUDA 13"
		finish
	fi
	finds_nothing "$library is built" "$([ -e "$library" ] || echo "it is not there")"
	finds_nothing "$library exports quire_backend and nothing else" \
		"$(nm -D --defined-only "$library" | awk '{ print $3 }' | grep -vx quire_backend; nm -D "$library" | grep -q ' T quire_backend$' || echo "no quire_backend")"
	finds_nothing "$library needs the C library and nothing else" \
		"$(readelf -d "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | grep -vx 'lib[cm]\.so\.6\|ld-linux-.*')"
	finish
}

# part NAME COMMAND...: run it, add its last counts to ours. No counts: it was not even built.
part() {
	local name=$1 start log="$ROOT/test/$1.log" line
	shift
	start=$(now)
	echo "== $name"
	"$@" 2>&1 | tee "$log" | grep -v '^  [a-z][a-z]  \|^make.*\*\*\*\|^[0-9]* passed, [0-9]* failed'
	line=$(grep '^[0-9]* passed, [0-9]* failed' "$log" | tail -n 1)
	if [ -z "$line" ]; then
		line="0 passed, 1 failed"
		echo "FAILED  $name: did not come to an end, see $log"
	fi
	echo "== $name: $line, $(since "$start") s"
	# shellcheck disable=SC2086
	set -- ${line//[^0-9 ]/}
	count "$1" "$2" "${3:-0}"
}

# Build as many files at a time as there are processors, then run.
build_and() {
	local target=$1
	shift
	$MAKE -j"$(nproc)" "$@" "$target"
}

# The bits of another compiler or optimisation: what computes, and nothing else, is built.
digest() {
	build_and check ONLY=digest FOLDERS="config offload cache engine" HELPERS=golden "$@"
}

everything() {
	local threaded=
	for name; do [ -e "tests/test_$name.c" ] && threaded="$threaded $name"; done
	mkdir -p "$ROOT/test"
	rm -f "$ROOT"/test/*.log
	SECONDS=0
	part cuda build_and cuda-check
	part suite build_and check
	part asan+ubsan build_and check SAN=address,undefined
	part tsan build_and check SAN=thread ONLY="${threaded# }"
	part digest-gcc-O0 digest OPT=-O0
	part digest-clang-O3 digest CC=clang
	part digest-clang-O0 digest CC=clang OPT=-O0
	part e2e build_and e2e
	part fuzz build_and fuzz
	echo "== $((SECONDS / 60)) min $((SECONDS % 60)) s in all"
	finish | tee "$ROOT/test/summary"
	exit "${PIPESTATUS[0]}"
}

"$@"
