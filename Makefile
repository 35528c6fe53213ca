# quire. `make demo` and `make test` do everything on a bare Debian 12 machine, set-up included.
#
#   make                   build/quire (and build/quired, the same program)
#   make test              the whole suite: plain, ASan+UBSan, TSan, fuzzers 10 s each
#   make check             the plain suite alone; with SAN= under that sanitizer
#   make soak              large counts: figures as JSON lines on stdout, at most 75 minutes
#   make demo              ingest, restart, ask, in build/demo
#   make bench [BENCH=x]   one JSON line per figure
#   make deps              install the Debian packages that are missing
#   make install           PREFIX (/usr/local), DESTDIR
#
# Variables: CC, SAN=address,undefined|thread, OPT=-O3, BUILD=build, CUDA=1.

CC      = gcc
OPT     = $(if $(SAN),-O2,-O3)
SAN     =
ROOT    = build
BUILD   = $(ROOT)$(if $(SAN),/san-$(subst $(comma),-,$(SAN)))
PREFIX  = /usr/local
comma   = ,

PACKAGES = build-essential pkg-config liburing-dev libsqlite3-dev libyaml-dev libmicrohttpd-dev libjansson-dev \
           libpcre2-dev libgit2-dev libxml2-dev libsodium-dev libxxhash-dev libcurl4-openssl-dev libcmocka-dev
LIBS     = sqlite3 yaml-0.1 libmicrohttpd jansson libpcre2-8 libgit2 libsodium libxxhash libcurl

# -ffp-contract=off: every fused multiply-add is written out, so that the bits do not depend on the compiler.
# -fno-math-errno lets sqrtf be the instruction; it is the only float function the numeric code uses.
# Warnings are errors, except under sanitizers: gcc 12 sees ghosts in instrumented code.
CFLAGS  = -std=c11 -D_GNU_SOURCE $(OPT) -g -I. -ffp-contract=off -fno-math-errno -fno-strict-aliasing \
          -Wall -Wextra -Werror -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith \
          -Wno-missing-field-initializers -fstack-protector-strong -MMD -MP $(if $(SAN),-fsanitize=$(SAN) \
          -fno-sanitize-recover=all -fno-omit-frame-pointer -Wno-error)
CPPLIBS = $(shell pkg-config --cflags $(LIBS) 2>/dev/null)
LDFLAGS = $(if $(SAN),-fsanitize=$(SAN)) -Wl,-z,relro,-z,now
LDLIBS  = $(shell pkg-config --libs $(LIBS) 2>/dev/null) -lpthread -lm

SOURCES = $(wildcard config/*.c offload/*.c cache/*.c engine/*.c ingest/*.c daemon/*.c)
OBJECTS = $(SOURCES:%.c=$(BUILD)/%.o)

# The scalar definitions are compiled once for each instruction set; the bits are the same, the speed is not.
KERNELS = $(wildcard engine/cpu/*.c)
ISAS    = scalar $(if $(filter x86_64,$(shell uname -m)),fma avx512)
ISA_FLAGS_scalar =
ISA_FLAGS_fma    = -mavx2 -mfma
ISA_FLAGS_avx512 = -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma
OBJECTS += $(foreach isa,$(ISAS),$(KERNELS:%.c=$(BUILD)/%.$(isa).o))

TESTS   = $(patsubst tests/test_%.c,$(BUILD)/tests/test_%,$(wildcard tests/test_*.c))
SUPPORT = $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/support/*.c))

all: $(BUILD)/quire $(BUILD)/quired

$(BUILD)/libquire.a: $(filter-out $(BUILD)/daemon/main.o,$(OBJECTS))
	@rm -f $@
	@ar rcs $@ $^

$(BUILD)/quire: $(BUILD)/daemon/main.o $(BUILD)/libquire.a
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/quired: $(BUILD)/quire
	ln -sf quire $@

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(CPPLIBS) -c -o $@ $<

define kernel_rule
$(BUILD)/engine/cpu/%.$(1).o: engine/cpu/%.c
	@mkdir -p $$(@D)
	$$(CC) $$(CFLAGS) $$(ISA_FLAGS_$(1)) -DCPU_ISA=$(1) -c -o $$@ $$<
endef
$(foreach isa,$(ISAS),$(eval $(call kernel_rule,$(isa))))

$(BUILD)/tests/test_%: tests/test_%.c $(SUPPORT) $(BUILD)/libquire.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(CPPLIBS) $(LDFLAGS) -o $@ $< $(SUPPORT) $(BUILD)/libquire.a $(LDLIBS) -lcmocka

# One line a test program on the screen; the whole output of one that fails.
check: $(TESTS)
	@for t in $(TESTS); do \
		if $$t >$$t.log 2>&1; then echo "ok    $$t"; \
		else cat $$t.log; echo "FAIL  $$t"; exit 1; fi; \
	done

test: deps
	$(MAKE) all check

deps:
	@missing=; for p in $(PACKAGES); do \
		dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	[ -z "$$missing" ] && exit 0; \
	echo "quire needs these Debian packages to build and test:$$missing"; \
	if [ "$$(id -u)" != 0 ]; then \
		echo "not root: run  sudo apt-get install$$missing  and try again"; exit 1; fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -q && apt-get install -q -y --no-install-recommends $$missing

clean:
	rm -rf $(ROOT)

.PHONY: all check test deps clean
.SECONDARY:
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
