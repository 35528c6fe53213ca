#include "ingest/skip.h"

#include <stdio.h>
#include <string.h>

/* The head of a file, where generators leave their mark, and how far apart the two halves of the mark may stand. */
enum { HEAD_BYTES = 4096, HEAD_LINES = 30, MARK_LINES = 4 };

/* So much base64 after a key's first line is a key; less is somebody who writes about keys. */
enum { KEY_LETTERS = 40 };

static const struct {
	const char *reason, *globs;
} names[N_SKIP_KINDS] = {
	[SKIP_VERSION_CONTROL] = {"version control", ".git\n.hg\n.svn\n.bzr\nCVS/\n_darcs/\n.jj/\n"},
	[SKIP_SECRET] = {"may hold secrets",
		".env\n.env.*\n!.env.example\n!.env.sample\n!.env.template\n*.pem\n*.key\n*.p12\n*.pfx\n*.jks\n*.keystore\n"
		"*.kdbx\n*.ppk\nid_rsa*\nid_dsa*\nid_ecdsa*\nid_ed25519*\n!*.pub\n.netrc\n_netrc\n.npmrc\n.pypirc\n.pgpass\n"
		".htpasswd\n.git-credentials\n.dockercfg\n*.tfstate\n*.tfstate.backup\ncredentials.json\n.ssh/\n.gnupg/\n"
		".aws/\n"},
	[SKIP_VENDORED] = {"vendored",
		"node_modules/\nbower_components/\njspm_packages/\nvendor/\nvendored/\nthird_party/\nthird-party/\n"
		"thirdparty/\n3rdparty/\nPods/\nCarthage/\nelm-stuff/\n.venv/\nsite-packages/\n.tox/\n"},
	[SKIP_GENERATED] = {"generated",
		"__pycache__/\n*.min.js\n*.min.mjs\n*.min.css\n*.map\npackage-lock.json\nnpm-shrinkwrap.json\nyarn.lock\n"
		"pnpm-lock.yaml\nbun.lock\nCargo.lock\nGemfile.lock\ncomposer.lock\npoetry.lock\nPipfile.lock\nuv.lock\n"
		"pdm.lock\nflake.lock\ngo.sum\npackages.lock.json\nmix.lock\npubspec.lock\n*.pb.go\n*_pb2.py\n*_pb2_grpc.py\n"
		"*.pb.h\n*.pb.cc\n"},
};

void skip_names_init(struct skip_names *s, struct arena *a)
{
	*s = (struct skip_names){0};
	for (int i = 0; i < N_SKIP_KINDS; i++)
		globs_parse(&s->globs[i], a, names[i].globs, strlen(names[i].globs));
}

const char *skip_by_name(const struct skip_names *s, enum skip_kind kind, const char *path, bool is_directory)
{
	return globs_match(&s->globs[kind], path, is_directory) == GLOB_MATCHES ? names[kind].reason : NULL;
}

size_t skip_kind_bytes(const char *reason)
{
	return strcspn(reason, ":");
}

static int line_of(const char *text, const char *at)
{
	int line = 1;

	while ((text = memchr(text, '\n', (size_t)(at - text)))) {
		text++;
		line++;
	}
	return line;
}

/*
 * Generated: a line of the head says so, and one of the next few asks not to edit the file. Or the one word that some
 * generators agreed on.
 */

static bool any_of(const char *line, const char *const *words)
{
	while (*words && !strstr(line, *words))
		words++;
	return *words;
}

static bool is_generated(const char *text, size_t bytes)
{
	static const char *const hands_off[] = {"do not edit", "do not modify", "do not change", "don't edit",
						"not edit this file", "changes will be lost", NULL};
	char head[HEAD_BYTES + 1];
	int n_lines = 0, since = MARK_LINES;
	size_t n = 0;

	/* NULs stand only in text that is read on the caller's word, and end the head. */
	for (; n < bytes && n < HEAD_BYTES && text[n]; n++)
		head[n] = text[n] >= 'A' && text[n] <= 'Z' ? (char)(text[n] - 'A' + 'a') : text[n];
	head[n] = '\0';
	for (char *line = head, *feed; line && n_lines++ < HEAD_LINES; line = feed ? feed + 1 : NULL, since++) {
		feed = strchr(line, '\n');
		if (feed)
			*feed = '\0';
		if (strstr(line, "generated"))
			since = 0;
		if (strstr(line, "@" "generated") || (since < MARK_LINES && any_of(line, hands_off)))
			return true;
	}
	return false;
}

/*
 * Secrets
 */

static bool is_word(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_';
}

static bool is_base64(char c)
{
	return (is_word(c) && c != '_') || c == '+' || c == '/';
}

/* What follows the first line of a private key: perhaps lines such as `Proc-Type: 4,ENCRYPTED`, then base64. In a
 * string of a program or of JSON, line feeds are two letters. */
static bool is_key(const char *p, const char *end)
{
	int letters = 0;
	bool header = true;

	while (p < end && letters < KEY_LETTERS) {
		const char *feed = memchr(p, '\n', (size_t)(end - p)), *stop = feed ? feed : end;

		if (header && memchr(p, ':', (size_t)(stop - p))) {
			p = stop;
		} else if (*p == '\\' && p + 1 < end && (p[1] == 'n' || p[1] == 'r')) {
			p += 2;
		} else if (*p == '\n' || *p == '\r' || *p == ' ' || *p == '\t' || *p == '"' || *p == '\'' || *p == '+' ||
			   *p == ',' || *p == '#' || *p == '*') {
			p++;
		} else if (is_base64(*p)) {
			header = false;
			letters++;
			p++;
		} else {
			return false;
		}
	}
	return letters == KEY_LETTERS;
}

static const char *find_private_key(const char *text, const char *end)
{
	static const char begin[] = "-----BEGIN ", kind[] = "PRIVATE KEY", dashes[] = "-----";

	for (const char *p = text; (p = memmem(p, (size_t)(end - p), begin, strlen(begin))); p++) {
		const char *name = p + strlen(begin);
		size_t most = (size_t)(end - name) < 64 ? (size_t)(end - name) : 64;
		const char *key = memmem(name, most, kind, strlen(kind)), *after = key ? key + strlen(kind) : NULL;

		if (after && end - after >= 6 && !strncmp(after, " BLOCK", 6))
			after += 6;
		if (after && end - after >= 5 && !memcmp(after, dashes, 5) && is_key(after + 5, end))
			return p;
	}
	return NULL;
}

/* Tokens that services mark so that they can be found. */
static const struct {
	const char *what, *prefix, *letters;
	int least, most;                /* letters behind the prefix */
} tokens[] = {
	{"an AWS access key", "AKIA", "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16, 16},
	{"an AWS access key", "ASIA", "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16, 16},
	{"a GitHub token", "ghp_", NULL, 36, 255},
	{"a GitHub token", "gho_", NULL, 36, 255},
	{"a GitHub token", "ghs_", NULL, 36, 255},
	{"a GitHub token", "github_pat_", NULL, 60, 255},
	{"a GitLab token", "glpat-", NULL, 20, 255},
	{"a Slack token", "xoxb-", "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-", 24, 255},
	{"a Slack token", "xoxp-", "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-", 24, 255},
	{"a Google API key", "AIza", "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_-", 35, 35},
	{"a Stripe key", "sk_live_", NULL, 24, 255},
};

/* Documentation has keys that say that they are none, and placeholders. */
static bool is_placeholder(const char *p, size_t n)
{
	size_t same = 1;

	if (memmem(p, n, "EXAMPLE", 7) || memmem(p, n, "example", 7))
		return true;
	while (same < n && p[n - 1 - same] == p[n - 1])
		same++;
	return same * 2 > n;
}

static const char *find_token(size_t i, const char *text, const char *end)
{
	size_t prefix = strlen(tokens[i].prefix);

	for (const char *p = text; (p = memmem(p, (size_t)(end - p), tokens[i].prefix, prefix)); p++) {
		const char *q = p + prefix;
		size_t n = 0;

		while (q + n < end && n <= (size_t)tokens[i].most &&
		       (tokens[i].letters ? q[n] && strchr(tokens[i].letters, q[n]) != NULL : is_word(q[n])))
			n++;
		if (n >= (size_t)tokens[i].least && n <= (size_t)tokens[i].most && (p == text || !is_word(p[-1])) &&
		    (q + n == end || !is_word(q[n])) && !is_placeholder(q, n))
			return p;
	}
	return NULL;
}

int skip_by_text(const char *text, size_t bytes, char reason[SKIP_REASON_BYTES])
{
	const char *end = text + bytes, *at, *what = "a private key";

	if (!bytes)
		return 0;
	if (is_generated(text, bytes)) {
		snprintf(reason, SKIP_REASON_BYTES, "generated: its head says so");
		return 1;
	}
	at = find_private_key(text, end);
	for (size_t i = 0; !at && i < sizeof tokens / sizeof *tokens; i++) {
		at = find_token(i, text, end);
		what = tokens[i].what;
	}
	if (!at)
		return 0;
	snprintf(reason, SKIP_REASON_BYTES, "may hold secrets: %s in line %d", what, line_of(text, at));
	return 1;
}
