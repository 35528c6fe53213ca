#!/bin/bash
# e2e: pack: experts to int4 and back into use: eval from memory and from slots, verify, a daemon that answers, and what is refused
. "$(dirname "$0")/lib.sh"

SIZE="--hidden 128 --heads 4 --q-lora 64 --kv-lora 64 --nope 32 --rope 16 --v 32 --dense-dim 256 --expert-dim 64 --experts 8
	--experts-per-token 2 --index-heads 2 --index-dim 32 --index-topk 64 --vocab 400 --max-positions 4096"
run 0 model synth "$T/source" --moe-layers 3 --dense-layers 1 $SIZE
run 0 model pack "$T/source" "$T/packed" --format int4-g64 --threads 2
says out "packed: 24 experts"
says out "packed by 2 threads"
says out "not measured" # so small a model measures no disk
says out "root mean square"
grep -q '"quant_method": "int4-g64"' "$T/packed/config.json" || fail "config.json does not say so"
run 0 model info "$T/packed"
says out "I32"

run 0 plan "$T/packed" --context 1000
says out "int4 weights:"
run 0 plan "$T/source" --context 1000
says out "fp8 weights:"

# A synthetic model in that form from the beginning: of as many bytes.
run 0 model synth "$T/int4" --moe-layers 3 --dense-layers 1 --format int4 $SIZE
seq 1 9 >"$T/few"
run 0 model eval "$T/int4" --ids "$T/few" --logits "$T/memory"
run 0 model eval "$T/int4" --ids "$T/few" --logits "$T/slots" --host-experts 80KB
cmp "$T/memory" "$T/slots" || fail "synthetic experts in slots give other logits"
for model in packed int4; do
	quire model info "$T/$model" --json | field routed >"$T/routed.$model"
done
[ "$(cat "$T/routed.packed")" -gt 0 ] || fail "no bytes of experts"
cmp "$T/routed.packed" "$T/routed.int4" || fail "synth and pack write experts of other sizes"

# The same model from memory, from slots, and on a device (a simulated one); another one than its source.
seq 1 90 >"$T/ids"
for profile in bf16 f32; do
	run 0 model eval "$T/packed" --ids "$T/ids" --logits "$T/memory" --compute $profile
	run 0 model eval "$T/packed" --ids "$T/ids" --logits "$T/slots" --compute $profile --host-experts 80KB
	cmp "$T/memory" "$T/slots" || fail "experts in slots give other logits in $profile"
	for chunk in 0 1; do
		QUIRE_BACKENDS=$BUILD/tests run 0 model eval "$T/packed" --ids "$T/ids" --logits "$T/device" --compute $profile \
			--host-experts 80KB --device sim:0 --device-experts 100KB --chunk $chunk
		cmp "$T/memory" "$T/device" || fail "experts on a device give other logits in $profile"
	done
	run 0 model eval "$T/source" --ids "$T/ids" --logits "$T/before" --compute $profile
	! cmp -s "$T/memory" "$T/before" || fail "packing changed nothing in $profile"
done

# Checksums came with it: nothing is noted in the store.
export XDG_CONFIG_HOME=$T XDG_DATA_HOME=$T/data
run 0 model verify "$T/packed"
says out "24 experts are as they should be"
says out "their checksums came with $T/packed"
[ ! -e "$T/data/quire/expert-sums" ] || fail "checksums were noted again"

# A daemon with it, its experts in slots, answers as one that has them all.
for slots in "tiers: {host_experts: 80KB}" ""; do
	MODEL=$T/packed configure "$slots"
	text "$T/text/a.txt" 60 1
	start_daemon
	run 0 ingest "$T/text" --as words
	run 0 ask words "what is there?" --max-tokens 16
	head -n 1 "$T/out" >"$T/answer.${slots:+slots}"
	run 0 status
	if [ -n "$slots" ]; then
		says out "came before they were asked for" # since the ingest counted which ones the text chose
		says out "of them there when they were chosen"
		quire --json status | grep -q '"asks_ahead":\(true\|false\)' || fail "nothing is said of routers that are asked ahead"
	else
		grep -q "before they were asked for" "$T/out" && fail "experts that are all in memory came early"
	fi
	stop_daemon
	rm -rf "$T/store"
done
[ -s "$T/answer." ] || fail "no answer"
cmp "$T/answer." "$T/answer.slots" || fail "another answer from slots"

# One byte of one expert: refused by layer and expert, from memory and from slots.
cp -r "$T/packed" "$T/damaged"
printf '\377' | dd of="$T/damaged/model-00003-of-00004.safetensors" bs=1 seek=30000 conv=notrunc status=none
run 8 model eval "$T/damaged" --ids "$T/ids" --logits "$T/memory"
says err "layer 2, expert "
run 8 model verify "$T/damaged"
says err "layer 2, expert "

# Verifying loads nothing but experts: a machine that has no room for the rest can do it, and the rest is what loading looks at.
cp -r "$T/packed" "$T/elsewhere"
first="$T/elsewhere/model-00001-of-00004.safetensors"
printf '\377\377' | dd of="$first" bs=1 seek=$(($(od -An -t u8 -N 8 "$first") + 8)) conv=notrunc status=none
run 0 model verify "$T/elsewhere"
says out "24 experts are as they should be"
run 1 model eval "$T/elsewhere" --ids "$T/ids" --logits "$T/memory"
says err "model.embed_tokens.weight holds a NaN"

run 1 model pack "$T/source" "$T/packed"
says err "is there already"
run 2 model pack "$T/packed" "$T/twice"
says err "int4 already"
run 2 model pack "$T/source"
says err "two directories"
run 2 model pack "$T/source" "$T/twice" --format int3
says err "'int3' is not int4-g64"
run 2 model pack tests/golden/glm52 "$T/twice"
says err "needs a multiple"
[ ! -e "$T/twice" ] || fail "a refused pack left something"
