#include "engine/fingerprint.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "config/file.h"
#include "config/mem.h"

enum { WHOLE = 1 << 20, EDGE = 4096, MAX_TOKENIZER = 256 << 20 };

static void put_u64(crypto_generichash_state *hash, uint64_t n)
{
	unsigned char raw[8];

	for (int i = 0; i < 8; i++)
		raw[i] = (unsigned char)(n >> 8 * i);
	crypto_generichash_update(hash, raw, sizeof raw);
}

static void put(crypto_generichash_state *hash, const void *data, size_t bytes)
{
	put_u64(hash, bytes);
	crypto_generichash_update(hash, data, bytes);
}

static int put_tokenizer(crypto_generichash_state *hash, const char *dir, struct err *err)
{
	char *path = xasprintf("%s/tokenizer.json", dir), *text = NULL;
	struct err cause;
	size_t bytes;
	int failed = 0;

	if (!file_read(&text, &bytes, path, MAX_TOKENIZER, &cause)) {
		put(hash, text, bytes);
	} else if (cause.code == ERR_NOT_FOUND) {
		put_u64(hash, UINT64_MAX);
	} else {
		failed = err_set(err, cause.code, "%s", cause.text);
	}
	free(text);
	free(path);
	return failed;
}

/* `scratch` holds WHOLE bytes. */
static int put_tensor(crypto_generichash_state *hash, const struct tensor *t, unsigned char *scratch, struct err *err)
{
	size_t first = t->bytes <= WHOLE ? (size_t)t->bytes : EDGE, last = t->bytes <= WHOLE ? 0 : EDGE;
	unsigned char digest[crypto_generichash_BYTES];

	if (io_read_full(t->file, scratch, t->offset, first, err) ||
	    io_read_full(t->file, scratch + first, t->offset + t->bytes - last, last, err))
		return err_wrap(err, "tensor %s", t->name);
	crypto_generichash(digest, sizeof digest, scratch, first + last, NULL, 0);
	put(hash, t->name, strlen(t->name));
	put(hash, t->dtype, strlen(t->dtype));
	put_u64(hash, (uint64_t)t->n_dims);
	for (int i = 0; i < t->n_dims; i++)
		put_u64(hash, (uint64_t)t->shape[i]);
	put(hash, digest, sizeof digest);
	return 0;
}

static int put_tensors(crypto_generichash_state *hash, const struct checkpoint *files, struct err *err)
{
	unsigned char *scratch = xmalloc(WHOLE, 1);
	int failed = 0;

	put_u64(hash, files->n_tensors);
	for (size_t i = 0; i < files->n_tensors && !failed; i++)
		failed = put_tensor(hash, files->tensors[i], scratch, err);
	free(scratch);
	return failed;
}

int fingerprint_model(uint8_t out[MODEL_ID_BYTES], const struct model_config *config, const struct checkpoint *files,
		      struct err *err)
{
	crypto_generichash_state hash;
	char *text = model_config_text(config);

	_Static_assert(crypto_generichash_BYTES == MODEL_ID_BYTES, "BLAKE2b-256");
	if (sodium_init() < 0) {
		free(text);
		return err_set(err, ERR_FAILED, "libsodium cannot be initialised");
	}
	crypto_generichash_init(&hash, NULL, 0, MODEL_ID_BYTES);
	put(&hash, text, strlen(text));
	free(text);
	if (put_tokenizer(&hash, files->dir, err) || put_tensors(&hash, files, err))
		return -1;
	crypto_generichash_final(&hash, out, MODEL_ID_BYTES);
	return 0;
}
