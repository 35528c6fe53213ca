#include "tests/sim/memory.h"

#include <string.h>
#include <sys/mman.h>

#include <map>
#include <vector>

enum { EDGE = 1024 }; /* bytes on each side of what is taken; less than MEMORY_APART */

struct memory {
	struct memory_range range;
	size_t bytes, used;
	std::map<uintptr_t, size_t> taken;
	uintptr_t next;         /* looked at first: addresses come back late, so that what was given back is seen to be used */
};

static std::vector<struct memory *> all;

static size_t rounded(size_t bytes)
{
	return (bytes + MEMORY_GRAIN - 1) / MEMORY_GRAIN * MEMORY_GRAIN;
}

void *memory_reserve(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

struct memory *memory_new(size_t bytes)
{
	/* Four times what can be taken: what lies between is never looked for in vain. */
	size_t addresses = 4 * rounded(bytes) + ((size_t)1 << 30);
	struct memory *m = new struct memory();
	void *taken = NULL, *p = memory_reserve(addresses);

	if (p)
		taken = memory_reserve(addresses / MEMORY_GRAIN * sizeof(uint16_t));
	if (!taken) {
		if (p)
			munmap(p, addresses);
		delete m;
		return NULL;
	}
	m->range = {(uintptr_t)p, (uintptr_t)p + addresses, (const uint16_t *)taken, NULL, 0};
	m->bytes = bytes;
	m->used = 0;
	m->next = m->range.from;
	all.push_back(m);
	return m;
}

void memory_free(struct memory *m)
{
	size_t addresses;

	if (!m)
		return;
	addresses = m->range.to - m->range.from;
	munmap((void *)m->range.from, addresses);
	munmap((void *)m->range.taken, addresses / MEMORY_GRAIN * sizeof(uint16_t));
	if (m->range.shadow)
		munmap(m->range.shadow, m->range.shadow_bytes);
	for (size_t i = 0; i < all.size(); i++)
		if (all[i] == m)
			all.erase(all.begin() + (ptrdiff_t)i);
	delete m;
}

/* Of `bytes`, from an address on, that lies apart from all; 0: nowhere. */
static uintptr_t room_from(const struct memory *m, uintptr_t at, size_t bytes)
{
	auto behind = m->taken.lower_bound(at);

	if (behind != m->taken.begin()) {
		auto before = std::prev(behind);

		if (at < before->first + rounded(before->second) + MEMORY_APART)
			at = before->first + rounded(before->second) + MEMORY_APART;
	} else if (at < m->range.from + MEMORY_APART) {
		at = m->range.from + MEMORY_APART;
	}
	for (;; behind++) {
		uintptr_t end = behind == m->taken.end() ? m->range.to : behind->first;

		if (at + bytes + MEMORY_APART <= end)
			return at;
		if (behind == m->taken.end())
			return 0;
		at = behind->first + rounded(behind->second) + MEMORY_APART;
	}
}

static void mark(struct memory *m, uintptr_t p, size_t bytes, bool there)
{
	uint16_t *taken = const_cast<uint16_t *>(m->range.taken) + (p - m->range.from) / MEMORY_GRAIN;

	for (size_t left = bytes; left; taken++) {
		size_t n = left < MEMORY_GRAIN ? left : (size_t)MEMORY_GRAIN;

		*taken = there ? (uint16_t)n : 0;
		left -= n;
	}
	memset((void *)(p - EDGE), 0xff, EDGE + rounded(bytes) + EDGE);
}

void *memory_take(struct memory *m, size_t bytes)
{
	uintptr_t p;

	if (!bytes)
		bytes = 1;
	if (bytes > m->bytes || rounded(bytes) > m->bytes - m->used)
		return NULL;
	p = room_from(m, m->next, rounded(bytes));
	if (!p)
		p = room_from(m, m->range.from, rounded(bytes));
	if (!p)
		return NULL;
	m->taken[p] = bytes;
	m->used += rounded(bytes);
	m->next = p + rounded(bytes) + MEMORY_APART;
	mark(m, p, bytes, true);
	return (void *)p;
}

bool memory_give(struct memory *m, void *p)
{
	auto it = m->taken.find((uintptr_t)p);

	if (it == m->taken.end())
		return false;
	mark(m, it->first, it->second, false);
	m->used -= rounded(it->second);
	m->taken.erase(it);
	return true;
}

size_t memory_left(const struct memory *m)
{
	return m->bytes - m->used;
}

uintptr_t memory_before(const struct memory *m, uintptr_t p, size_t *bytes)
{
	auto it = m->taken.upper_bound(p);

	if (it == m->taken.begin())
		return 0;
	it--;
	*bytes = it->second;
	return it->first;
}

bool memory_has(const struct memory *m, const void *p, size_t bytes)
{
	size_t there = 0;
	uintptr_t start = memory_before(m, (uintptr_t)p, &there);

	return start && (uintptr_t)p - start < there && bytes <= there - ((uintptr_t)p - start);
}

static bool is_poison(uintptr_t from, size_t bytes)
{
	const unsigned char *p = (const unsigned char *)from;

	/* The first is, and each is what the one before it is. */
	return p[0] == 0xff && !memcmp(p, p + 1, bytes - 1);
}

void *memory_overrun(const struct memory *m)
{
	for (const auto &t : m->taken)
		if (!is_poison(t.first - EDGE, EDGE) || !is_poison(t.first + t.second, rounded(t.second) - t.second + EDGE))
			return (void *)t.first;
	return NULL;
}

bool memory_is_devices(const void *p, size_t bytes)
{
	for (const struct memory *m : all)
		if ((uintptr_t)p < m->range.to && (uintptr_t)p + bytes > m->range.from)
			return true;
	return false;
}

struct memory_range *memory_range_of(struct memory *m)
{
	return &m->range;
}

void memory_wipe_shadows(void)
{
	for (const struct memory *m : all)
		if (m->range.shadow)
			madvise(m->range.shadow, m->range.shadow_bytes, MADV_DONTNEED);
}
