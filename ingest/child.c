#include "ingest/child.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "config/clock.h"
#include "config/mem.h"
#include "engine/tokenizer.h"

enum { STACK_BYTES = 64 << 10, PIECE_BYTES = 64 << 10, POLL_MS = 100, N_DESCRIPTORS = 32, MAX_FILTER = 256 };

#if defined(__x86_64__)
#define OUR_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define OUR_ARCH AUDIT_ARCH_AARCH64
#else
#define OUR_ARCH 0
#endif

/* What a filter of text and its dynamic loader call. openat is looked at more closely. */
static const int allowed[] = {
	SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_pread64, SYS_lseek, SYS_close, SYS_fstat, SYS_newfstatat, SYS_statx,
	SYS_faccessat, SYS_readlinkat, SYS_getcwd, SYS_getdents64, SYS_fcntl, SYS_fadvise64, SYS_dup, SYS_dup3, SYS_pipe2,
	SYS_mmap, SYS_munmap, SYS_mremap, SYS_mprotect, SYS_madvise, SYS_brk, SYS_execve, SYS_exit, SYS_exit_group,
	SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sigaltstack, SYS_set_tid_address, SYS_set_robust_list,
	SYS_futex, SYS_rseq, SYS_prlimit64, SYS_getrandom, SYS_clock_gettime, SYS_clock_getres, SYS_gettimeofday,
	SYS_getpid, SYS_getppid, SYS_getpgid, SYS_gettid, SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, SYS_uname, SYS_sysinfo,
	SYS_getrusage, SYS_sched_yield, SYS_sched_getaffinity, SYS_ioctl,
#ifdef SYS_faccessat2
	SYS_faccessat2,
#endif
#ifdef SYS_arch_prctl
	SYS_arch_prctl, SYS_access, SYS_stat, SYS_lstat, SYS_readlink, SYS_time, SYS_poll, SYS_getrlimit, SYS_dup2, SYS_getpgrp, SYS_pipe,
#endif
};

/* The system's own places, where a program and its libraries and data lie. */
static const char *const places[] = {"/usr", "/bin", "/lib", "/lib64", "/nix/store", "/etc/ld.so.cache",
				     "/etc/ld.so.preload", "/etc/fonts", "/etc/localtime", "/dev/null", "/dev/urandom"};

/* All that the child needs, made beforehand: it shares our memory and may call nothing that takes a lock. */
struct start {
	const struct child_options *opt;
	int in, out, err, landlock;
	struct sock_fprog filter;
	struct rlimit limits[5];
	int number;                     /* errno of what failed, written by the child */
	const char *failed;             /* what failed; NULL: the program runs, or it could not be executed (number) */
};

static const int limited[5] = {RLIMIT_AS, RLIMIT_CPU, RLIMIT_FSIZE, RLIMIT_NOFILE, RLIMIT_CORE};

_Static_assert(2 * sizeof allowed / sizeof *allowed + 16 <= MAX_FILTER, "the filter has room for all that is allowed");

#define RETURN_ERRNO(number) BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (number))

/* Another architecture's numbers mean other calls: such a program is killed. What is not allowed fails with EPERM. */
static unsigned short make_filter(struct sock_filter *f)
{
	unsigned short n = 0;

	f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
	f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OUR_ARCH, 1, 0);
	f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++) {
		f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)allowed[i], 0, 1);
		f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	}
	f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 1, 0);
	f[n++] = (struct sock_filter)RETURN_ERRNO(EPERM);
	/* Flags are the third argument; both architectures are little-endian, so its low half comes first. */
	f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2]));
	f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, O_ACCMODE | O_CREAT | O_TRUNC, 0, 1);
	f[n++] = (struct sock_filter)RETURN_ERRNO(EPERM);
	f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	return n;
}

static void allow_place(int ruleset, const char *path)
{
	struct landlock_path_beneath_attr rule = {.parent_fd = open(path, O_PATH | O_CLOEXEC)};

	if (rule.parent_fd < 0)
		return; /* not every system has every place */
	/* A right that a file cannot have is refused with all the others, so that a directory asks for more. */
	rule.allowed_access = LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_READ_DIR;
	if (syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0)) {
		rule.allowed_access &= ~(uint64_t)LANDLOCK_ACCESS_FS_READ_DIR;
		syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0);
	}
	close(rule.parent_fd);
}

/* A ruleset of reading the system's places, -1 where the kernel has none. */
static int make_ruleset(const char *program)
{
	struct landlock_ruleset_attr all = {.handled_access_fs = (LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1};
	int fd = (int)syscall(SYS_landlock_create_ruleset, &all, sizeof all, 0);

	if (fd < 0)
		return -1;
	for (size_t i = 0; i < sizeof places / sizeof *places; i++)
		allow_place(fd, places[i]);
	allow_place(fd, program);
	return fd;
}

/* In the child, on a stack of its own in our memory, while the thread that made it waits. */
__attribute__((no_sanitize("address", "thread", "undefined"), noinline)) static int begin(void *ctx)
{
	static char *const environment[] = {(char *)"LC_ALL=C.UTF-8", NULL};
	struct start *s = ctx;

	if (dup2(s->in, 0) < 0 || dup2(s->out, 1) < 0 || dup2(s->err, 2) < 0 || chdir("/")) {
		s->failed = "its descriptors";
	} else if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) {
		s->failed = "no_new_privs";
	} else if (s->landlock >= 0 && syscall(SYS_landlock_restrict_self, s->landlock, 0)) {
		s->failed = "Landlock";
	} else {
		syscall(SYS_close_range, 3, ~0U, 0); /* the rest is closed by exec */
		for (int i = 0; i < 5 && !s->failed; i++)
			if (syscall(SYS_prlimit64, 0, limited[i], &s->limits[i], NULL))
				s->failed = "a limit";
		if (!s->failed && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &s->filter, 0, 0))
			s->failed = "the filter of system calls";
		if (!s->failed)
			syscall(SYS_execve, s->opt->program, s->opt->arguments, environment);
	}
	s->number = errno;
	syscall(SYS_exit_group, 127);
	return 127;
}

/* A descriptor that will not be one of the three that the child gets. */
static int above_two(int fd)
{
	int high;

	if (fd < 0 || fd > 2)
		return fd;
	high = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	close(fd);
	return high;
}

static int open_input(const struct child_options *opt)
{
	int fd = above_two(memfd_create("quire-input", MFD_CLOEXEC));
	size_t at = 0;

	while (fd >= 0 && at < opt->input_bytes) {
		ssize_t n = write(fd, opt->input + at, opt->input_bytes - at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			close(fd);
			return -1;
		}
		at += (size_t)n;
	}
	if (fd >= 0)
		lseek(fd, 0, SEEK_SET);
	return fd;
}

static int open_pipe(int ends[2])
{
	if (pipe2(ends, O_CLOEXEC)) {
		ends[0] = ends[1] = -1;
		return -1;
	}
	ends[0] = above_two(ends[0]);
	ends[1] = above_two(ends[1]);
	return ends[0] < 0 || ends[1] < 0 || fcntl(ends[0], F_SETFL, O_NONBLOCK) ? -1 : 0;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* The process, or -1. Signals stay blocked in it: what we install for them is not for it. */
static pid_t start(struct start *s)
{
	char *stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	sigset_t all, former;
	pid_t pid;

	if (stack == MAP_FAILED)
		return -1;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &former);
	pid = clone(begin, stack + STACK_BYTES, CLONE_VM | CLONE_VFORK | SIGCHLD, s);
	pthread_sigmask(SIG_SETMASK, &former, NULL);
	munmap(stack, STACK_BYTES);
	return pid;
}

/* Take what a pipe has. False: it has ended. */
static bool take(int fd, struct bytes *into, size_t most, bool *more)
{
	char piece[PIECE_BYTES];
	ssize_t n = read(fd, piece, sizeof piece);
	size_t room;

	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	room = most - into->n < (size_t)n ? most - into->n : (size_t)n;
	bytes_append(into, piece, room);
	*more |= room < (size_t)n;
	return n > 0;
}

/* Read both outputs until they end, or there is a reason not to wait. */
static enum child_end watch(const struct child_options *opt, int64_t deadline, int out, int err, struct bytes *output,
			    struct bytes *says)
{
	struct pollfd fds[2] = {{.fd = out, .events = POLLIN}, {.fd = err, .events = POLLIN}};
	bool more = false, ignored = false;

	while (fds[0].fd >= 0 || fds[1].fd >= 0) {
		int64_t left = deadline - clock_now_ms();

		if (opt->cancel && atomic_load(opt->cancel))
			return CHILD_CANCELLED;
		if (left <= 0)
			return CHILD_DEADLINE;
		if (poll(fds, 2, (int)(left < POLL_MS ? left : POLL_MS)) < 0 && errno != EINTR)
			return CHILD_FAILED;
		if (fds[0].fd >= 0 && fds[0].revents && !take(out, output, opt->max_bytes, &more))
			fds[0].fd = -1;
		if (fds[1].fd >= 0 && fds[1].revents && !take(err, says, 4096, &ignored))
			fds[1].fd = -1;
		if (more)
			return CHILD_TOO_LARGE;
	}
	return CHILD_DONE;
}

static enum child_end not_run(const char *what, int number, char line[CHILD_LINE_BYTES])
{
	snprintf(line, CHILD_LINE_BYTES, "%s: %s", what, strerror(number));
	return CHILD_NOT_RUN;
}

static enum child_end run(struct start *s, int out, int err, int *their_ends[3], struct bytes *output,
			  char line[CHILD_LINE_BYTES])
{
	int64_t deadline = clock_now_ms() + s->opt->deadline_ms;
	struct bytes says = {0};
	enum child_end end;
	int status = 0;
	pid_t pid = start(s);

	if (pid < 0)
		return not_run("a process", errno, line);
	for (int i = 0; i < 3; i++)
		close_fd(their_ends[i]);
	if (s->number) {
		waitpid(pid, &status, 0);
		return not_run(s->failed ? s->failed : s->opt->program, s->number, line);
	}
	end = watch(s->opt, deadline, out, err, output, &says);
	/* One that has closed its outputs may still not end. */
	while (end == CHILD_DONE && !waitpid(pid, &status, WNOHANG)) {
		end = clock_now_ms() < deadline ? CHILD_DONE : CHILD_DEADLINE;
		poll(NULL, 0, 1);
	}
	if (end != CHILD_DONE) {
		kill(pid, SIGKILL);
		waitpid(pid, &status, 0);
	}
	if (end == CHILD_DONE && status)
		end = CHILD_FAILED;
	bytes_append(&says, "", 1);
	snprintf(line, CHILD_LINE_BYTES, "%.*s", (int)strcspn(says.data, "\r\n"), says.data);
	bytes_free(&says);
	return end;
}

enum child_end child_run(const struct child_options *opt, char **out, size_t *bytes, char line[CHILD_LINE_BYTES])
{
	struct sock_filter filter[MAX_FILTER];
	rlim_t seconds = (rlim_t)(opt->deadline_ms + 999) / 1000, memory = (rlim_t)opt->memory_bytes;
	struct start s = {
		.opt = opt, .in = -1, .out = -1, .err = -1, .landlock = -1, .filter = {0, filter},
		.limits = {{memory, memory}, {seconds, seconds}, {0, 0}, {N_DESCRIPTORS, N_DESCRIPTORS}, {0, 0}},
	};
	int outputs[2] = {-1, -1}, errors[2] = {-1, -1}, *theirs[3] = {&s.in, &s.out, &s.err};
	struct bytes output = {0};
	enum child_end end;

	line[0] = '\0';
	if (!OUR_ARCH)
		return not_run("confine it", ENOSYS, line);
	s.filter.len = make_filter(filter);
	if ((s.in = open_input(opt)) < 0 || open_pipe(outputs) || open_pipe(errors)) {
		end = not_run("its pipes", errno, line);
	} else {
		s.out = outputs[1];
		s.err = errors[1];
		outputs[1] = errors[1] = -1;
		s.landlock = make_ruleset(opt->program);
		end = run(&s, outputs[0], errors[0], theirs, &output, line);
	}
	for (int i = 0; i < 3; i++)
		close_fd(theirs[i]);
	for (int i = 0; i < 2; i++) {
		close_fd(&outputs[i]);
		close_fd(&errors[i]);
	}
	close_fd(&s.landlock);
	*out = NULL;
	*bytes = output.n;
	if (end == CHILD_DONE) {
		bytes_append(&output, "", 1);
		*out = output.data;
	} else {
		bytes_free(&output);
	}
	return end;
}
