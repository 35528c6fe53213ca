#!/bin/bash
# e2e: plan: a model on this machine and on one in a file, for people and for programs, and what does not fit or is not known
. "$(dirname "$0")/lib.sh"

run 0 plan tests/golden/glm52 --context 1000
says out "glm_moe_dsa"
says out "this machine: "
says out "it fits"
says out "assumed: no GPU is counted"

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
