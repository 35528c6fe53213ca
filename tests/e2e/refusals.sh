#!/bin/bash
# e2e: what cannot be answered or ingested is refused with the reason, and what is there stays as it was
. "$(dirname "$0")/lib.sh"

CONTEXT=2000 configure
text "$T/source/a.txt" 40 1
text "$T/elsewhere/a.txt" 40 1
text "$T/large/big/a.txt" 400 1
text "$T/large/small/b.txt" 10 2
start_daemon
run 0 ingest "$T/source" --as words

# An unknown corpus: the nearest name.
run 4 ask wrods "who?"
says err "wrods"
says err "words"

# A question that does not fit, or an answer that would not: the numbers, and nothing is cut.
run 7 ask words "$(printf 'who holds the token? %.0s' $(seq 300))"
says err "2000"
run 7 ask words "who?" --max-tokens 1900
says err "1900"
run 0 ask words "who?" --max-tokens 10

# Another source under the same name: both are named.
run 9 ingest "$T/elsewhere" --as words
says err "$T/source"
says err "$T/elsewhere"

# A corpus that does not fit: the limit, what is large, and what would help.
run 7 ingest "$T/large" --as large
says err "2000"
says err "big"
says err "--exclude"
run 4 ask large "who?"
run 0 ingest "$T/large" --as large --exclude 'big/**'

# Places that are none.
run 4 ingest "$T/nowhere" --as x
says err "No such file or directory"
run 2 ingest "$T/source/a.txt" --as x
says err "not a directory"

# A relative directory is the client's.
(cd "$T" && "$QUIRE" --config "$T/quire.yaml" ingest source --as words >"$T/out" 2>"$T/err") || fail "a relative directory"

run 4 jobs j-99
run 4 cancel j-99
run 2 cancel j-1
says err "done already"
stop_daemon

# Other latents are another identity: refused, with both, and with what to do.
LATENTS=fp8 configure
start_daemon
run 9 ask words "who?"
says err "quire ingest $T/source --as words"
run 0 ingest "$T/source" --as words
run 0 ask words "who?" --max-tokens 10
stop_daemon

# A chat template that nobody knows: the reason, unless the configuration says how to render.
mkdir "$T/model"
cp "$MODEL"/config.json "$MODEL"/tokenizer.json "$MODEL"/*.safetensors* "$T/model/"
echo '{{ messages }}' >"$T/model/chat_template.jinja"
MODEL=$T/model LATENTS=fp8 configure
start_daemon
run 0 status
says out "no questions: "
run 1 ask words "who?"
says err "template"
stop_daemon
sed -i 's/^model: {/model: {template: glm-5.2, /' "$T/quire.yaml"
start_daemon
run 0 ask words "who?" --max-tokens 10
stop_daemon
