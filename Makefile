# quire. `make demo` and `make test` do everything on a bare Debian 12 machine, set-up included.
#
#   make                   build/quire (and build/quired, the same program)
#   make test              everything: the suite plain, under ASan+UBSan, its threaded tests under TSan, the
#                          end-to-end scripts, fuzzers 10 s each, compilers and optimisations bit for bit
#   make check             the suite alone; ONLY="queue units" those tests. With SAN= under that sanitizer, and
#                          `make SAN=... test` is the same with the set-up before it
#   make e2e, make fuzz    those parts of `make test` alone; SECONDS_EACH=600 for longer fuzzing
#   make soak              large counts: figures as JSON lines on stdout, at most 75 minutes
#   make bench [BENCH=x]   one JSON line a figure; ARGS="--depth 64K" are handed to the program
#   make demo              ingest, restart, ask, in build/demo
#   make deps              install the Debian packages that a build needs and that are missing
#   make install           PREFIX (/usr/local), DESTDIR; the library for NVIDIA's devices with it, where it was built
#   make CUDA=1            build/libquire_cuda.so besides, with nvcc; quire opens it when a device is asked for, and links to none of it
#   make device-kit        build/device: what a machine with a device and no Debian packages needs for tests/device.sh
#
# Variables: CC, CXX, SAN=address,undefined|thread, OPT, CUDA=1, NVCC, CUDA_ARCHS="90" (fewer of them),
# V=1 (show commands). Every compiler, sanitizer and optimisation builds in a directory of its own.

CC      = gcc
CXX     = g++
SAN     =
USUAL   = $(if $(SAN),-O2,-O3)
OPT     = $(USUAL)
ROOT    = build
VARIANT = $(subst $(space),-,$(strip $(filter-out gcc,$(notdir $(CC))) $(patsubst -%,%,$(filter-out $(USUAL),$(OPT))) \
          $(subst $(comma),-,$(SAN))))
BUILD   = $(ROOT)$(VARIANT:%=/%)
PREFIX  = /usr/local
comma   = ,
space   = $() $()

# Where a library is not found, tests/deps.sh knows the package.
LIBS    = sqlite3 yaml-0.1 libmicrohttpd jansson libpcre2-8 libsodium libxxhash libcurl libxml-2.0 libgit2 liburing

# -ffp-contract=off: every fused multiply-add is written out, so that the bits do not depend on the compiler.
# -fno-math-errno lets sqrtf be the instruction; it is the only float function the numeric code uses.
# Warnings are errors, except under sanitizers: gcc 12 sees ghosts in instrumented code.
CFLAGS  = -std=c11 -D_GNU_SOURCE $(OPT) -g -I. -ffp-contract=off -fno-math-errno -fno-strict-aliasing \
          -Wall -Wextra -Werror -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith \
          -Wno-missing-field-initializers -fstack-protector-strong -MMD -MP $(if $(SAN),-fsanitize=$(SAN) \
          -fno-sanitize-recover=all -fno-omit-frame-pointer -Wno-error)
CPPLIBS := $(shell pkg-config --cflags $(LIBS) 2>/dev/null)
LDFLAGS = $(if $(SAN),-fsanitize=$(SAN)) -Wl,-z,relro,-z,now
LDLIBS  := $(shell pkg-config --libs $(LIBS) 2>/dev/null) -lpthread -lm

# Where one test is all that is built, these may be what it needs.
FOLDERS = config offload cache engine ingest daemon
HELPERS = $(basename $(notdir $(wildcard tests/support/*.c)))

SOURCES = $(wildcard $(FOLDERS:%=%/*.c))
OBJECTS = $(SOURCES:%.c=$(BUILD)/%.o)

# Kernels are compiled once for each instruction set: the definitions of engine/cpu for all of them, but where
# engine/simd has a file of that name, which is then what instruction sets with vectors use. The bits are the same.
KERNEL_FLAGS = $(if $(SAN),-O1 -fno-var-tracking) # gcc takes minutes over what is inlined there, and seconds so
KNOWN_ISAS := $(if $(filter x86_64,$(shell uname -m)),avx2 avx512 avx512bf16)
# Under a sanitizer, or otherwise optimised, only what can be run here: compilers take long over the rest.
HERE    := $(if $(SAN)$(filter-out $(USUAL),$(OPT)),$(shell sed -n '/^flags/{s/avx512_bf16/avx512bf16/;s/avx512vl/avx512/;p;q}' /proc/cpuinfo),$(KNOWN_ISAS))
ISAS    = scalar $(filter $(HERE),$(KNOWN_ISAS))
ISA_FLAGS_scalar     =
ISA_FLAGS_avx2       = -mavx2 -mfma -mf16c
ISA_FLAGS_avx512     = $(ISA_FLAGS_avx2) -mavx512f -mavx512bw -mavx512vl -mavx512dq
ISA_FLAGS_avx512bf16 = $(ISA_FLAGS_avx512) -mavx512bf16 -mavx512vbmi
DEFINED = $(wildcard engine/cpu/*.c)
TWINS   = $(wildcard engine/simd/*.c)
VECTORS = $(TWINS) $(filter-out $(TWINS:engine/simd/%=engine/cpu/%),$(DEFINED))
OBJECTS += $(DEFINED:%.c=$(BUILD)/%.scalar.o) \
           $(foreach isa,$(filter-out scalar,$(ISAS)),$(VECTORS:%.c=$(BUILD)/%.$(isa).o))

# The tables of kernels to choose from (engine/ops.c).
CFLAGS  += $(patsubst %,-DHAVE_%,$(filter-out scalar,$(ISAS)))

# AVX-512's width in plain C, for the tests of processors that lack it (engine/simd/vec.h). Not in the variants: compilers
# take minutes over it under sanitizers, and those are for the instruction sets that there are. -O1 halves what they take.
ISA_FLAGS_wide       = $(ISA_FLAGS_avx2) -DSIMD_WIDE -Wno-psabi -O1
ISA_FLAGS_widebf16   = $(ISA_FLAGS_wide) -DSIMD_WIDE_PAIRS
WIDE     = $(if $(VARIANT)$(filter-out x86_64,$(shell uname -m)),,$(foreach isa,wide widebf16,$(VECTORS:%.c=$(BUILD)/%.$(isa).o)))
CFLAGS  += $(if $(WIDE),-DHAVE_WIDE)

SUPPORT = $(HELPERS:%=$(BUILD)/tests/support/%.o) $(WIDE)
TESTS   = $(patsubst %.c,$(BUILD)/%,$(if $(ONLY),$(ONLY:%=tests/test_%.c),$(wildcard tests/test_*.c)))
# A benchmark that is a script is run when it is named, and only then.
SCRIPTED = $(wildcard $(BENCH:%=tests/bench/%.sh))
BENCHES = $(patsubst %.c,$(BUILD)/%,$(if $(SCRIPTED),,$(if $(BENCH),$(BENCH:%=tests/bench/%.c),$(wildcard tests/bench/*.c))))
SOAKS   = $(patsubst %.c,$(BUILD)/%,$(wildcard tests/soak/*.c))
FUZZERS = $(patsubst %.c,$(BUILD)/%,$(wildcard tests/fuzz/fuzz_*.c))

# Tests with more than one thread, which `make test` runs under TSan as well.
THREADED_TESTS = queue pool io jobs http daemon golden tokenizer_threads experts_ahead

RUN = MAKE='$(MAKE)' ROOT='$(ROOT)' BUILD='$(BUILD)' tests/run.sh

all: $(BUILD)/quire $(BUILD)/quired $(if $(CUDA),cuda)

$(BUILD)/quire: $(BUILD)/daemon/main.o $(BUILD)/libquire.a
$(BUILD)/quired: $(BUILD)/quire
	@ln -sf quire $@

$(BUILD)/libquire.a: $(filter-out $(BUILD)/daemon/main.o,$(OBJECTS)) $(BUILD)/objects
	@echo "  ar  $@"
	$(Q)rm -f $@ && ar rcs $@ $(filter %.o,$^)

$(TESTS): $(BUILD)/tests/%: $(BUILD)/tests/%.o $(SUPPORT) $(BUILD)/libquire.a
$(TESTS) $(BENCHES) $(SOAKS): LDLIBS += -lcmocka # what tests share asserts
$(BENCHES) $(SOAKS): $(BUILD)/tests/%: $(BUILD)/tests/%.o $(SUPPORT) $(BUILD)/libquire.a
$(FUZZERS): $(BUILD)/tests/%: $(BUILD)/tests/%.o $(BUILD)/libquire.a
$(BUILD)/tests/device: $(BUILD)/tests/device.o $(BUILD)/tests/support/measure.o $(BUILD)/libquire.a
$(BUILD)/tests/device: LDFLAGS += -Wl,--as-needed # it goes to machines that have none of the rest
$(FUZZERS): LDFLAGS += -fsanitize=fuzzer

# Libraries of devices that there are not, each with a fault of its own, for the tests of what opens them.
FAKES = cuda one none unknown shut dark nosymbol abi bytes liar
FAKE_one      = -DFAKE_DEVICES=1
FAKE_none     = -DFAKE_DEVICES=0
FAKE_unknown  = -DFAKE_DEVICES=-1
FAKE_shut     = -DFAKE_SHUT
FAKE_dark     = -UFAKE_KIND -DFAKE_KIND='"cuda"' -DFAKE_SHUT
FAKE_nosymbol = -DFAKE_NO_SYMBOL
FAKE_abi      = -DFAKE_ABI=99
FAKE_bytes    = -DFAKE_BYTES=8
FAKE_liar     = -UFAKE_KIND -DFAKE_KIND='"honest"'
$(BUILD)/tests/test_accelerator $(BUILD)/tests/test_doctor: | $(FAKES:%=$(BUILD)/tests/backends/libquire_%.so)
$(BUILD)/tests/backends/libquire_%.so: tests/backends/fake.c offload/backend.h $(BUILD)/flags
	@mkdir -p $(@D)
	@echo "  ld  $@"
	$(Q)$(CC) $(filter-out -MMD -MP,$(CFLAGS)) -DFAKE_KIND='"$*"' $(FAKE_$*) -fPIC $(LDFLAGS) -shared -o $@ $<

# For tests: kernels for GPUs on the processor, as libraries of a kind of device (tests/sim/backend.cc). "race" are those whose
# accesses are called out, to us: they are linked without a sanitizer's library, and whatever SAN is they have no other. So they are
# built once, for all variants, and stand beside each one's tests as links.
SIM_DIR   = $(ROOT)/sim
SIM       = $(BUILD)/tests/libquire_sim.so $(BUILD)/tests/libquire_simrace.so
FAULTY    = $(BUILD)/tests/libquire_faulty.so $(BUILD)/tests/libquire_faultyrace.so
SIM_PARTS = $(patsubst %.cc,$(SIM_DIR)/%.o,$(wildcard tests/sim/*.cc))
SIM_KERNELS = $(wildcard engine/cuda/*.cu)
CXXFLAGS  = -std=c++17 -D_GNU_SOURCE -O2 -g -I. -fPIC -fvisibility=hidden -fno-exceptions -fno-rtti -ffp-contract=off \
            -fno-math-errno -fno-strict-aliasing -Wall -Wextra -Werror -Wshadow -Wvla -Wpointer-arith \
            -Wno-missing-field-initializers -MMD -MP
# A call to libm for each fmaf would take most of the time.
SIM_FLAGS := -Wno-unknown-pragmas -fsanitize=alignment -include tests/sim/cuda_on_host.h \
             $(if $(shell grep -m 1 -w fma /proc/cpuinfo 2>/dev/null),-mfma)

$(SIM_DIR)/libquire_sim.so: $(SIM_PARTS) $(SIM_KERNELS:%.cu=$(SIM_DIR)/%.sim.o)
$(SIM_DIR)/libquire_simrace.so: $(SIM_PARTS) $(SIM_KERNELS:%.cu=$(SIM_DIR)/%.simrace.o)
$(SIM_DIR)/libquire_faulty.so: $(SIM_PARTS) $(SIM_DIR)/tests/sim/faulty.sim.o
$(SIM_DIR)/libquire_faultyrace.so: $(SIM_PARTS) $(SIM_DIR)/tests/sim/faulty.simrace.o
$(SIM_DIR)/libquire_%.so: tests/sim/exports.map
	@echo "  ld  $@"
	$(Q)$(CXX) -shared -Wl,-z,relro,-z,now,--version-script=tests/sim/exports.map -o $@ $(filter %.o,$^)
$(SIM) $(FAULTY): $(BUILD)/tests/%: $(SIM_DIR)/%
	@mkdir -p $(@D) && ln -sf $(abspath $<) $@
$(BUILD)/tests/test_sim: | $(SIM) $(FAULTY)
$(BUILD)/tests/test_experts_device $(BUILD)/tests/test_tune: | $(SIM)

$(SIM_DIR)/%.o: %.cc $(SIM_DIR)/flags
	@mkdir -p $(@D)
	@echo "  c++ $@"
	$(Q)$(CXX) $(CXXFLAGS) -c -o $@ $<
$(SIM_DIR)/%.sim.o: %.cu $(SIM_DIR)/flags
	@mkdir -p $(@D)
	@echo "  c++ $@"
	$(Q)$(CXX) $(CXXFLAGS) $(SIM_FLAGS) -c -o $@ -x c++ $<
$(SIM_DIR)/%.simrace.o: %.cu $(SIM_DIR)/flags
	@mkdir -p $(@D)
	@echo "  c++ $@"
	$(Q)$(CXX) $(CXXFLAGS) $(SIM_FLAGS) -fsanitize=thread -c -o $@ -x c++ $<
$(SIM_DIR)/flags: FORCE
	@$(call write_if_changed,$(CXX) $(shell $(CXX) --version | head -n 1) $(CXXFLAGS) $(SIM_FLAGS))

# One way to link and one to compile, for all of them.
Q = $(if $(V),,@)
$(BUILD)/quire $(BUILD)/tests/device $(TESTS) $(BENCHES) $(SOAKS) $(FUZZERS):
	@echo "  ld  $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $(filter %.o %.a,$^) $(LDLIBS)

$(BUILD)/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	@echo "  cc  $@"
	$(Q)$(CC) $(CFLAGS) $(CPPLIBS) -c -o $@ $<

define kernel_rule
$(BUILD)/engine/%.$(1).o: engine/%.c $(BUILD)/flags
	@mkdir -p $$(@D)
	@echo "  cc  $$@"
	$$(Q)$$(CC) $$(CFLAGS) $$(KERNEL_FLAGS) $$(ISA_FLAGS_$(1)) -DCPU_ISA=$(1) -c -o $$@ $$<
endef
$(foreach isa,$(ISAS) wide widebf16,$(eval $(call kernel_rule,$(isa))))

# Two files that change when the flags, or the list of objects, do: what depends on them is then built again.
$(BUILD)/flags: FORCE
	@pkg-config --exists $(LIBS) || { echo "libraries are missing: run 'make deps'" >&2; exit 1; }
	@$(call write_if_changed,$(CC) $(shell $(CC) --version | head -n 1) $(CFLAGS) $(CPPLIBS) $(ISAS))
$(BUILD)/objects: FORCE
	@$(call write_if_changed,$(OBJECTS))
write_if_changed = mkdir -p $(@D) && echo '$(1)' | cmp -s - $@ || echo '$(1)' >$@

# The library of NVIDIA's devices: kernels by nvcc, the rest by the compiler, and CUDA's runtime in it. Without contraction, as in CFLAGS;
# a kernel that spills registers does not pass. Machine code for each architecture, and PTX for those that come after the last.
NVCC := $(firstword $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc))
NVCC_LEAST = 13
NVCC_MAJOR := $(if $(NVCC),$(shell $(NVCC) --version 2>/dev/null | sed -n 's/.*release \([0-9]*\).*/\1/p'))
NVCC_WILL_DO := $(if $(NVCC_MAJOR),$(shell [ $(NVCC_MAJOR) -ge $(NVCC_LEAST) ] && echo yes))
CUDA_HOME  = $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
CUDA_ARCHS = 80 89 90 100 120
CUDA_NEWEST = $(lastword $(CUDA_ARCHS))
NVCC_FLAGS = -std=c++17 -O3 -I. -fmad=false -lineinfo -Werror all-warnings -Xptxas -warn-spills,-Werror \
             -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$a,code=sm_$a) \
             -gencode arch=compute_$(CUDA_NEWEST),code=compute_$(CUDA_NEWEST)
CUDA_OBJECTS = $(BUILD)/engine/cuda/backend.o $(patsubst %.cu,$(BUILD)/%.o,$(wildcard engine/cuda/*.cu))

cuda: $(BUILD)/libquire_cuda.so

$(BUILD)/libquire_cuda.so: $(CUDA_OBJECTS)
	@echo "  ld  $@"
	$(Q)$(CC) $(LDFLAGS) -shared -Wl,-z,defs -Wl,--exclude-libs,ALL -o $@ $^ -L$(CUDA_HOME)/lib64 -lcudart_static -static-libgcc \
		-Wl,-Bstatic -lstdc++ -Wl,-Bdynamic -ldl -lrt -lpthread -lm

$(BUILD)/engine/cuda/%.o: engine/cuda/%.c $(BUILD)/cuda-flags
	@mkdir -p $(@D)
	@echo "  cc  $@"
	$(Q)$(CC) $(CFLAGS) -isystem $(CUDA_HOME)/include -fPIC -fvisibility=hidden -DOLDEST_ARCH=$(firstword $(CUDA_ARCHS)) -c -o $@ $<

$(BUILD)/engine/cuda/%.o: engine/cuda/%.cu $(BUILD)/cuda-flags
	@mkdir -p $(@D)
	@echo "  nv  $@"
	$(Q)$(NVCC) $(NVCC_FLAGS) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<

$(BUILD)/cuda-flags: FORCE
	@[ -n '$(NVCC)' ] || { echo "there is no nvcc on PATH or in /usr/local/cuda/bin: NVCC=/where/it/is/bin/nvcc" >&2; exit 1; }
	@[ -n '$(NVCC_WILL_DO)' ] || { echo "$(NVCC) is of CUDA $(NVCC_MAJOR), and $(NVCC_LEAST) is the least that will do" >&2; exit 1; }
	@$(call write_if_changed,$(NVCC) $(shell $(NVCC) --version 2>/dev/null | tail -n 1) $(NVCC_FLAGS) $(CC) $(CFLAGS))

# All that tests/device.sh runs, in one folder: the C library apart, which every machine has, and what compilers bring.
KIT = $(ROOT)/device
device-kit: cuda $(BUILD)/quire $(BUILD)/tests/device
	@rm -rf $(KIT) && mkdir -p $(KIT)
	$(Q)strip -o $(KIT)/quire $(BUILD)/quire && strip -o $(KIT)/device $(BUILD)/tests/device
	$(Q)strip -o $(KIT)/libquire_cuda.so $(BUILD)/libquire_cuda.so
	$(Q)ldd $(BUILD)/quire $(BUILD)/tests/device | sed -n 's/.* => \(\/.*\) (.*/\1/p' | sort -u | \
		grep -v '/\(lib\(c\|m\|dl\|rt\|pthread\|resolv\|stdc++\|gcc_s\)\|ld-linux-[^/]*\)\.so' >$(KIT)/libraries
	$(Q)tar -czhf $(KIT)/lib.tar.gz --transform 's|.*/||' -P -T $(KIT)/libraries && rm $(KIT)/libraries
	@echo "$(KIT): $$(du -sm $(KIT) | cut -f 1) MB"

cuda-check: $(if $(NVCC_WILL_DO),cuda)
	@$(RUN) cuda_library $(if $(NVCC_WILL_DO),$(NVCC))

check: $(TESTS)
	@$(RUN) programs $(TESTS)

e2e: all $(SIM) $(BUILD)/tests/device
	@$(RUN) scripts $(filter-out tests/e2e/demo.sh,$(wildcard tests/e2e/*.sh))

# libFuzzer comes with clang, and counts branches in code that it has compiled. No parser computes: plain C will do.
fuzz:
	@$(MAKE) CC=clang OPT=-O1 SAN=address,undefined,fuzzer-no-link ISAS=scalar fuzz-programs
fuzz-programs: $(FUZZERS)
	@$(RUN) fuzzers $(FUZZERS)

test: test-deps
ifeq ($(SAN),)
	@$(RUN) everything $(THREADED_TESTS)
else
	@$(MAKE) -j$$(nproc) $(TESTS)
	@$(RUN) programs $(TESTS)
endif

# Building speaks to stderr, so that stdout has JSON lines and nothing else.
soak: deps
	@$(MAKE) -j$$(nproc) all $(SOAKS) >&2
	@$(RUN) soak $(SOAKS) $(wildcard tests/soak/*.sh)

bench: deps
	@$(MAKE) -j$$(nproc) $(if $(SCRIPTED),all) $(BENCHES) >&2
	@for b in $(BENCHES) $(SCRIPTED); do BUILD='$(BUILD)' $$b $(ARGS) || exit; done

demo: deps
	@$(MAKE) -j$$(nproc) all
	@BUILD='$(BUILD)' tests/e2e/demo.sh

deps:
	@tests/deps.sh build
test-deps:
	@tests/deps.sh build test

install: all
	install -D -m 755 $(BUILD)/quire $(DESTDIR)$(PREFIX)/bin/quire
	ln -sf quire $(DESTDIR)$(PREFIX)/bin/quired
	if [ -e $(BUILD)/libquire_cuda.so ]; then \
		install -D -m 755 $(BUILD)/libquire_cuda.so $(DESTDIR)$(PREFIX)/lib/quire/libquire_cuda.so; fi
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/quire LICENSE README.md $(wildcard docs/*.md)
	$(if $(wildcard docs/quire.service),install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/systemd/user docs/quire.service)

clean:
	rm -rf $(ROOT)

.PHONY: all cuda cuda-check device-kit check e2e fuzz fuzz-programs test soak bench demo deps test-deps install clean FORCE
.SECONDARY:
MAKEFLAGS += --no-print-directory
-include $(SIM_PARTS:.o=.d) $(foreach k,sim simrace,$(patsubst %.cu,$(SIM_DIR)/%.$(k).d,$(SIM_KERNELS) tests/sim/faulty.cu))
-include $(OBJECTS:.o=.d) $(CUDA_OBJECTS:.o=.d) $(BUILD)/daemon/main.d $(SUPPORT:.o=.d) $(addsuffix .d,$(TESTS) $(BENCHES) $(SOAKS) $(FUZZERS))
