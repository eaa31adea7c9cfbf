/* y over a scale, in eight bits. */

#ifndef QUANTISE_H
#define QUANTISE_H

#include <stdbool.h>
#include <stdint.h>

#include "real.h"
#include "safetensors.h"

struct quantise {
    enum dtype dtype;
    bool mx;         /* scales are powers of two */
    real bound;      /* of the largest number; infinite where there is none */
    size_t groups, size; /* how many scales, each of how many numbers */
};

/* False where there is no such dtype, or no such scaling of rows of d features: they are no whole number of groups. */
bool quantise_as(struct quantise *how, const char *dtype, const char *scaling, size_t rows, size_t d);

/* What brings the largest number of every group to the largest of the dtype, or near to it. */
void find_scales(struct quantise how, const real *y, real *scales);

/* y over its scale, within the range of the dtype, not yet rounded to it. */
void divide(struct quantise how, real *y, const real *scales);

#endif
