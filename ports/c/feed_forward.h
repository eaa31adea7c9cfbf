/* Matrix products, and the nonlinearities between them. */

#ifndef FEED_FORWARD_H
#define FEED_FORWARD_H

#include <stdbool.h>

#include "real.h"

/* y = x weight' + bias, weight [out, in]; bias may be NULL. */
struct linear {
    size_t rows, in, out;
};

void linear(struct linear how, const real *x, const real *weight, const real *bias, real *y);

/* dx is added to; dbias may be NULL. */
void linear_vjp(struct linear how, const real *dy, const real *x, const real *weight, real *dx, real *dweight, real *dbias);

real sigmoid(real x);

void swiglu(size_t count, const real *gate, const real *up, real *y);
void swiglu_vjp(size_t count, const real *dy, const real *gate, const real *up, real *dgate, real *dup);

void gelu(bool approximate, size_t count, const real *x, real *y);
void gelu_vjp(bool approximate, size_t count, const real *dy, const real *x, real *dx);

void geglu(bool approximate, size_t count, const real *gate, const real *up, real *y);
void geglu_vjp(bool approximate, size_t count, const real *dy, const real *gate, const real *up, real *dgate, real *dup);

#endif
