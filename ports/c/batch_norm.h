/* BatchNorm of rows of d features, each feature by itself, and its gradients. */

#ifndef BATCH_NORM_H
#define BATCH_NORM_H

#include <stdbool.h>

#include "real.h"

struct batch_norm {
    bool training;  /* the statistics are those of the rows; else those that ran */
    bool unbiased;  /* the variance that runs is divided by one less than the rows */
    real eps, momentum;
    const real *weight, *bias; /* d, or NULL */
    size_t rows, d;
};

/* mean and variance, of d, are those that ran; in training they become what runs from now on. */
void batch_norm(struct batch_norm how, const real *x, real *mean, real *variance, real *y);

/* The gradients of <y, dy>, for the statistics that ran before. */
void batch_norm_vjp(struct batch_norm how, const real *dy, const real *x, const real *mean, const real *variance, real *dx,
                    real *dweight, real *dbias);

#endif
