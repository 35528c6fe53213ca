#!/bin/bash
# tests/device.sh [FOLDER]: everything that needs a device, on a machine that has one. FOLDER (build/device) is what `make device-kit` has
# made: programs, libquire_cuda.so, and the libraries that they need and this machine may lack. Nothing is built here.
#
# JSON lines of figures, a line for each check, and last "N passed, N failed, N skipped"; status 1 when something failed. With OUT set to a
# directory, what was printed is kept there. ONLY="exact speed" runs those checks alone, of: driver boundary exact speed model daemon memcheck
# racecheck.
set -u
cd "$(dirname "$0")/.." || exit 1
kit=$(realpath "${1:-build/device}") || exit 1
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"
passed=0 failed=0 skipped=0 status=0

lib=$(mktemp -d)
trap 'rm -rf "$lib"' EXIT
tar -xzf "$kit/lib.tar.gz" -C "$lib" || exit 1
export QUIRE_BACKENDS=$kit

with_libraries() { LD_LIBRARY_PATH="$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "$@"; }

wanted() { case " ${ONLY:-$1} " in *" $1 "*) ;; *) return 1 ;; esac }

# The doctor sees a device.
sees_device() { "$kit/quire" doctor | tee /dev/stderr | grep -q '^ok    gpu        cuda:0'; }

# Layers of GLM-5.2's dimensions with 96 experts each: what experts take here, tokens per second with the processor alone and with the
# device, and the same logits for experts in host memory, on the device, and on either of the two and the disk.
same_model() {
	local model=$lib/model way
	"$kit/quire" model synth "$model" --moe-layers 2 --dense-layers 1 --experts 96 --vocab 4096 --seed 1 >/dev/null || return
	XDG_DATA_HOME=$lib "$kit/quire" tune "$model" --device cuda:0 || return
	seq 3 17 800 >"$lib/ids"
	for way in "" "--device cuda:0" "--device cuda:0 --device-experts 3GB --host-experts 1GB" "--host-experts 1GB"; do
		echo "== $way"
		"$kit/quire" model eval "$model" --ids "$lib/ids" --logits "$lib/logits" --chunk 1 $way || return
		[ -z "$way" ] && mv "$lib/logits" "$lib/want" && continue
		cmp "$lib/logits" "$lib/want" || return
	done
	for way in "" "--device cuda:0" "--device cuda:0 --device-experts 3GB" "--device cuda:0 --device-experts 3GB --host-experts 1GB" "--host-experts 4GB"; do
		echo "== $way"
		"$kit/quire" model bench "$model" --prompt 512 --decode 64 --repeat 2 $way || return
	done
}

# A daemon that computes on the device answers as one that does not, from the same store and from one of its own (tests/e2e/device.sh).
same_answers() { DEVICE=cuda:0 DEVICE_AT=$kit BUILD=$kit bash tests/e2e/device.sh; }

# check NAME SECONDS COMMAND...: passes with status 0.
check() {
	local name=$1 seconds=$2 start=$SECONDS
	shift 2
	status=0
	wanted "$name" || return
	with_libraries timeout -k 10 "$seconds" "$@" >"$out/$name.log" 2>&1 || status=$?
	# What could be ten thousand lines is kept, and not shown.
	if [ "$(wc -l <"$out/$name.log")" -gt 60 ]; then
		head -n 40 "$out/$name.log"
		echo "..."
		tail -n 15 "$out/$name.log"
	else
		cat "$out/$name.log"
	fi
	if [ $status = 0 ]; then
		passed=$((passed + 1))
		echo "ok      $name, $((SECONDS - start)) s"
	else
		failed=$((failed + 1))
		echo "FAILED  $name: status $status, $((SECONDS - start)) s"
	fi
}

# The same under compute-sanitizer, where it is and can work on this device.
sanitize() {
	local tool=$1
	wanted "$tool" || return
	if ! command -v compute-sanitizer >/dev/null; then
		skipped=$((skipped + 1))
		echo "skipped $tool: no compute-sanitizer"
		return
	fi
	check "$tool" 240 compute-sanitizer --tool "$tool" --error-exitcode 3 "$kit/device" exact --small
	if [ $status != 0 ] && grep -qi "device not supported" "$out/$tool.log"; then
		failed=$((failed - 1)) skipped=$((skipped + 1))
		echo "skipped $tool: this device is not supported by it"
	fi
}

if command -v nvidia-smi >/dev/null; then nvidia-smi | head -n 20; fi
export kit
export lib
export -f sees_device same_model same_answers
check driver 60 bash -c sees_device
check boundary 60 "$kit/device" boundary
check exact 300 "$kit/device" exact
check speed 180 "$kit/device" speed
check model 300 bash -c same_model
check daemon 120 bash -c same_answers
sanitize memcheck
sanitize racecheck
echo "$passed passed, $failed failed$([ $skipped = 0 ] || echo ", $skipped skipped")"
[ $failed = 0 ]
