#!/bin/sh
# Install the Debian packages that are missing: tests/deps.sh build [test]. Asks apt nothing when all is there.
set -eu

table="
build build-essential       the C compiler, the linker and make
build pkg-config            finds the libraries below
build libsqlite3-dev        the index of the store, and the jobs
build libyaml-dev           the configuration
build libmicrohttpd-dev     HTTP on the daemon's socket
build libcurl4-openssl-dev  HTTP in the command line
build libjansson-dev        JSON: checkpoints, tokenizers, the API
build libpcre2-dev          the pattern that cuts text before it is tokenized
build libsodium-dev         BLAKE2b: identities of models, texts and spans
build libxxhash-dev         checksums of the store
build libxml2-dev           HTML to text
build libgit2-dev           git: work trees, refs, history
build liburing-dev          many reads in flight at once
build libcmocka-dev         the tests' frame
build g++                   kernels for GPUs on the processor, for tests
test  clang                 a second compiler, and the fuzzers
test  libclang-rt-14-dev    sanitizers and libFuzzer of clang
test  valgrind              memcheck of one end-to-end run
test  curl                  requests that no client of ours would make
test  git                   a repository for an end-to-end test; quire itself never runs it
test  poppler-utils         pdftotext, which makes text of PDF
"

if ! command -v dpkg-query >/dev/null; then
	echo "this is not Debian: the packages that quire needs are not looked for (tests/deps.sh lists them)" >&2
	exit 0
fi

missing='' reasons=''
while read -r kind package why; do
	case " $* " in *" ${kind:-none} "*) ;; *) continue ;; esac
	dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' && continue
	missing="$missing $package"
	reasons="$reasons  $(printf '%-22s' "$package")$why
"
done <<END
$table
END
[ -n "$missing" ] || exit 0

printf 'quire needs these Debian packages, which are missing here:\n%s' "$reasons" >&2
if [ "$(id -u)" != 0 ]; then
	echo "only root may install them; run:  sudo apt-get install$missing" >&2
	exit 1
fi
echo "installing them with apt-get" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get -q update >&2
# The list is one word a package.
# shellcheck disable=SC2086
apt-get -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 install $missing >&2
