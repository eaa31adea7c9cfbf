/* Whatever computes is compiled twice: for float, which half precision is computed in as well, and with -DDOUBLE for double.
   The names below then end in the type's. Functions of <tgmath.h> choose theirs by the argument. */

#ifndef REAL_H
#define REAL_H

#include <stddef.h>
#include <tgmath.h>

#ifdef DOUBLE
typedef double real;
#define OF_REAL(name) name##_double
#else
typedef float real;
#define OF_REAL(name) name##_float
#endif

#define added OF_REAL(added)
#define answer OF_REAL(answer)
#define attention OF_REAL(attention)
#define attention_vjp OF_REAL(attention_vjp)
#define batch_norm OF_REAL(batch_norm)
#define batch_norm_vjp OF_REAL(batch_norm_vjp)
#define block OF_REAL(block)
#define block_vjp OF_REAL(block_vjp)
#define decode OF_REAL(decode)
#define divide OF_REAL(divide)
#define dot OF_REAL(dot)
#define encode OF_REAL(encode)
#define find_scales OF_REAL(find_scales)
#define gated_norm OF_REAL(gated_norm)
#define gated_norm_vjp OF_REAL(gated_norm_vjp)
#define geglu OF_REAL(geglu)
#define geglu_vjp OF_REAL(geglu_vjp)
#define gelu OF_REAL(gelu)
#define gelu_vjp OF_REAL(gelu_vjp)
#define linear OF_REAL(linear)
#define linear_vjp OF_REAL(linear_vjp)
#define norm OF_REAL(norm)
#define norm_vjp OF_REAL(norm_vjp)
#define quantise_as OF_REAL(quantise_as)
#define reals OF_REAL(reals)
#define rope OF_REAL(rope)
#define round_all OF_REAL(round_all)
#define round_to OF_REAL(round_to)
#define sigmoid OF_REAL(sigmoid)
#define sum OF_REAL(sum)
#define swiglu OF_REAL(swiglu)
#define swiglu_vjp OF_REAL(swiglu_vjp)

#endif
