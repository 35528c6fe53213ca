#include "ingest/document.h"

#include <sodium.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "config/utf8.h"

static bool is_plain(const char *path)
{
	size_t n = strlen(path);

	for (size_t i = 0; i < n; ) {
		const unsigned char *p = (const unsigned char *)path + i;
		uint32_t c;
		size_t length = utf8_decode(p, n - i, &c);

		if (!length || c < 0x20 || (c >= 0x7f && c < 0xa0) || c == '"' || c == '\\')
			return false;
		i += length;
	}
	return true;
}

static void append_quoted(struct bytes *out, const char *path)
{
	static const char letters[] = "\aa\bb\tt\nn\vv\ff\rr\"\"\\\\";

	bytes_append(out, "\"", 1);
	for (const unsigned char *p = (const unsigned char *)path; *p; p++) {
		const char *letter = NULL;
		char escape[5];

		for (const char *l = letters; *l && !letter; l += 2)
			letter = (unsigned char)*l == *p ? l + 1 : NULL;
		if (letter)
			snprintf(escape, sizeof escape, "\\%c", *letter);
		else
			snprintf(escape, sizeof escape, *p < 0x20 || *p >= 0x7f ? "\\%03o" : "%c", *p);
		bytes_append(out, escape, strlen(escape));
	}
	bytes_append(out, "\"", 1);
}

void document_path(struct bytes *out, const char *path)
{
	if (is_plain(path))
		bytes_append(out, path, strlen(path));
	else
		append_quoted(out, path);
}

size_t document_render(struct bytes *out, const char *path, const char *text, size_t bytes)
{
	size_t start = out->n, header_bytes;

	bytes_append(out, "=== ", 4);
	document_path(out, path);
	bytes_append(out, " ===\n", 5);
	header_bytes = out->n - start;
	bytes_append(out, text, bytes);
	if (bytes && text[bytes - 1] != '\n')
		bytes_append(out, "\n", 1);
	return header_bytes;
}

static bool has_hash(const struct cache_document *d, const char *text, size_t bytes)
{
	uint8_t hash[sizeof d->content_hash];

	crypto_generichash(hash, sizeof hash, (const unsigned char *)text, bytes, NULL, 0);
	return !memcmp(hash, d->content_hash, sizeof hash);
}

int document_recover(struct bytes *out, const struct tokenizer *t, const struct cache_document *d, const int32_t *ids,
		     struct err *err)
{
	struct bytes rendered = {0}, header = {0};
	size_t skip = document_render(&header, d->path, "", 0), n;
	bool right;

	tokenizer_decode(t, &rendered, ids + d->first_token, (size_t)d->n_tokens, 0);
	right = rendered.n >= skip && !memcmp(rendered.data, header.data, skip);
	n = right ? rendered.n - skip : 0;
	if (right && !has_hash(d, rendered.data + skip, n)) {
		/* It may have lacked the line feed at its end. */
		right = n && rendered.data[skip + n - 1] == '\n' && has_hash(d, rendered.data + skip, n - 1);
		n -= right;
	}
	if (right)
		bytes_append(out, rendered.data + skip, n);
	bytes_free(&rendered);
	bytes_free(&header);
	return right ? 0 : err_set(err, ERR_MISMATCH, "%s: this model's tokenizer does not make of its tokens the text that was "
				   "read", d->path);
}
