/* What `quire model info DIR` says. */
#ifndef QUIRE_ENGINE_MODEL_INFO_H
#define QUIRE_ENGINE_MODEL_INFO_H

#include <stdio.h>

#include "config/err.h"

/* Print what config.json and the headers of the safetensors files say; no weight is read. With json one object on
 * one line, else lines for people. A directory that has a config.json and no safetensors file is described from the
 * config alone ("bytes" is null then). On error nothing is printed. */
int model_info_print(FILE *out, const char *dir, int json, struct err *err);

#endif
