/* The two halves of a float: bfloat16 and float16, as bits, rounded to nearest with ties to even. */

#ifndef HALF_H
#define HALF_H

#include <stdint.h>

uint16_t bfloat16_of(float x);
uint16_t float16_of(float x);
float from_bfloat16(uint16_t bits);
float from_float16(uint16_t bits);

#endif
