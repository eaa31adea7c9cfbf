/* Numbers to compute with, made of a file's and back, and their sums. */

#ifndef NUMBERS_H
#define NUMBERS_H

#include "real.h"
#include "safetensors.h"

real *reals(size_t count); /* zeros */
real *decode(const struct tensor *tensor);
const unsigned char *encode(enum dtype dtype, size_t count, const real *values);

/* The nearest number of a dtype, as bfloat16 and float16 have fewer than real does. */
real round_to(enum dtype dtype, real x);
void round_all(enum dtype dtype, size_t count, real *values);

real *added(size_t count, const real *a, const real *b);

/* Pairwise: the error grows with the logarithm of n. A step of more than one sums a column. */
real sum(size_t n, const real *a, size_t step);
real dot(size_t n, const real *a, size_t a_step, const real *b, size_t b_step);

#endif
