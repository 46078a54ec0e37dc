/* The generalised delta rule and Kimi's delta attention on CPUs, forward and backward, in float32 and float64.

   The recurrence runs token by token: with a decay for every key channel, products of whole chunks would save nothing
   and exponentials of sums could overflow. One pass over a memory that stays in the first-level cache decays it, writes,
   reads, and recalls for the next token. One task is one head of one row, so that results do not depend on the number
   of threads. The equations are in walk.h and gradients.h; native.py documents the arguments. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../exponential.h"
#include "../subnormals.h"

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define WIDEST 4
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define WIDEST 2
#else
#define VECTOR_BYTES 16
#define WIDEST 2
#endif

enum { SEGMENT = 32, DEEP = 4 }; /* tokens between two saved memories; value columns in a tile of the gradients */
const int64_t tokens_a_segment = SEGMENT;

/* Where element (b, t, h, 0) of a tensor lies: strides in elements, the last one being 1. */
typedef struct {
    void *data;
    int64_t b, t, h;
} View;

/* Sizes of a call. `tied`: a, b and the keys that are written all come of one key and β (Kimi's delta attention). */
typedef struct {
    int64_t batch, time, heads, key, value, tied;
} Shape;

static inline int64_t padded(int64_t size) { return (size + 15) / 16 * 16; }

static inline int64_t tokens_from(const Shape *shape, int64_t t0) {
    return shape->time - t0 < SEGMENT ? shape->time - t0 : SEGMENT;
}

#define REAL float
#define EXP exp_float
#define NAME(name) name##_float
#include "walk.h"
#include "gradients.h"
#undef VEC
#undef REAL
#undef EXP
#undef NAME

#define REAL double
#define EXP exp
#define NAME(name) name##_double
#include "walk.h"
#include "gradients.h"
