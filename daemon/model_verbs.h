/*
 * `quire model info | eval | tokenize | bench | verify | synth`: a window on the model for checks and measurements. They run in the
 * process of the command line and need no daemon.
 */
#ifndef QUIRE_DAEMON_MODEL_VERBS_H
#define QUIRE_DAEMON_MODEL_VERBS_H

/* argv[0] is the word after `model`. Prints results on standard output, errors on standard error; returns the exit
 * status (err.h). */
int model_verb(int argc, char **argv);

#endif
