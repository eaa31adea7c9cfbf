/* A case answered: its op, with the constants of the message and the tensors of its file. */

#ifndef OPS_H
#define OPS_H

#include "json.h"
#include "safetensors.h"

/* The outputs asked for, and the taps; in float, or in double. */
struct tensor *answer_float(const struct json *message, const struct tensor *given);
struct tensor *answer_double(const struct json *message, const struct tensor *given);

#endif
