/*
 * tokenizer.json, read and checked: everything in it that decides an id. Private to the tokenizer.
 */
#ifndef QUIRE_ENGINE_TOKENIZER_JSON_H
#define QUIRE_ENGINE_TOKENIZER_JSON_H

#include "engine/bpe.h"
#include "engine/pretokenize.h"

struct added_token {
	char *text;
	size_t bytes;
	int32_t id;
	int special;
	int normalized; /* matched in a second pass, in what the others leave */
};

struct tokenizer_file {
	struct bpe *bpe; /* knows the added tokens' strings too */
	struct pretokenizer *pretokenizer;
	struct added_token *added;
	size_t n_added;
};

/* Errors (ERR_FORMAT) begin with name and key path. On error nothing is left behind. */
int tokenizer_file_parse(struct tokenizer_file *f, const char *name, const char *text, size_t bytes, struct err *err);
/* Takes a cleared one. */
void tokenizer_file_free(struct tokenizer_file *f);

#endif
