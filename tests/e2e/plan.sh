#!/bin/bash
# e2e: plan: a model on this machine and on one in a file, what does not fit or is not known; experts verified, and in slots
. "$(dirname "$0")/lib.sh"

run 0 plan tests/golden/glm52 --context 1000
says out "glm_moe_dsa"
says out "this machine: "
says out "it fits"
says out "assumed: no GPU is counted: "

# A device beside the processor has experts, and nothing else.
export QUIRE_BACKENDS=$BUILD/tests
run 0 plan tests/golden/glm52 --context 1000 --device sim:0
says out "assumed: sim:0, simulated device, runs routed experts and nothing else"
says out "gpu          0.0 GB, 100.0 % of the experts"
says out "TFLOP on GPUs"
run 0 --json plan tests/golden/glm52 --context 1000 --device sim:0
[ "$(grep -o '"gpu":{[^}]*}' "$T/out" | field bytes)" -gt 0 ] || fail "nothing is on the device"
run 0 plan tests/golden/glm52 --context 1000 --device none
says out "assumed: no GPU is counted: none was asked for"
run 0 plan tests/fixtures/mixtral-8x7b --device sim:0
says out "assumed: no GPU is counted: sim:0 would run routed experts alone, and quire does not run this model"
run 2 plan tests/golden/glm52 --device sim:0 --machine "$T/server.yaml"
says err "--device is of this machine"
run 4 plan tests/golden/glm52 --device sim:7
says err "sim:7: there is no such device"
unset QUIRE_BACKENDS

cat >"$T/server.yaml" <<EOF
name: one H200
gpus: 1
gpu_memory: 141GB
gpu_read: 4800GB/s
gpu_tflops: 400
link_read: 50GB/s
host_memory: 120GB
host_read: 300GB/s
host_tflops: 2
disk_memory: 2TB
disk_read: 7GB/s
EOF
run 0 --json plan tests/fixtures/glm-5.2/config.json --machine "$T/server.yaml" --context 131072
[ "$(wc -l <"$T/out")" = 1 ] || fail "the plan is not one line"
for key in total_params active_params active_params_with_embedding sparsity bytes_per_tier kv_bytes_per_token flops_per_token \
	tokens_per_s ingest_seconds gpus_needed; do
	says out "\"$key\":"
done
says out '"binds":"disk"'
run 0 plan tests/fixtures/glm-5.2 --machine "$T/server.yaml" --weights int4
says out "int4 weights:"

sed -i 's/disk_memory: .*/disk_memory: 100GB/' "$T/server.yaml"
run 7 plan tests/fixtures/glm-5.2 --machine "$T/server.yaml"
says out "it does NOT fit: "
run 7 plan tests/fixtures/glm-5.2 --machine "$T/server.yaml" --context 2000000
says err "more than the 1048576 positions"

run 2 plan tests/fixtures/glm-5.2 --weights fp4
says err "none of fp8, bf16, int4"
run 4 plan "$T/nowhere"
echo '{"model_type": "brand_new"}' >"$T/config.json"
run 1 plan "$T/config.json"
says err 'architecture "brand_new" is not known'

# Every expert read once, then compared with what was noted; a changed byte is found.
mkdir "$T/model"
cp tests/golden/glm52/config.json tests/golden/glm52/tokenizer.json tests/golden/glm52/*.safetensors* "$T/model"
for _ in 1 2; do
	XDG_CONFIG_HOME=$T XDG_DATA_HOME=$T/data run 0 model verify "$T/model"
	says out "64 experts are as they should be"
done
XDG_CONFIG_HOME=$T XDG_DATA_HOME=$T/data run 0 model eval "$T/model" --ids tests/golden/glm52/below.ids --logits "$T/a" --host-experts 1MB
XDG_CONFIG_HOME=$T XDG_DATA_HOME=$T/data run 0 model eval "$T/model" --ids tests/golden/glm52/below.ids --logits "$T/b"
cmp "$T/a" "$T/b" || fail "experts in slots give other logits"
run 7 model eval "$T/model" --ids tests/golden/glm52/below.ids --logits "$T/a" --host-experts 1KB
says err "bytes at least"

# What routers chose, in a file that the benchmark of policies reads.
run 0 model eval "$T/model" --ids tests/golden/glm52/below.ids --logits "$T/a" --record-trace "$T/trace" --chunk 3
cmp "$T/a" "$T/b" || fail "recording changes logits"
head -n 1 "$T/trace" | grep -q '^quire-trace 1 layers 8 experts 8 chosen 3 listed 6$' || fail "$(head -n 1 "$T/trace")"
