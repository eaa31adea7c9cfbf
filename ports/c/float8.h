/* A float in eight bits: a sign, an exponent, and so many digits below the leading one. */

#ifndef FLOAT8_H
#define FLOAT8_H

#include <stdint.h>

/* The nearest number, ties to even; x must be within the range of the format. e4m3fn has 3 digits, e5m2 2. */
uint8_t float8_of(float x, int digits);

#endif
