/* The delta rule and gated linear attention on CPUs, forward and backward, in float32 and float64.

   Chunks of 16 tokens: within a chunk the rule is a triangular system solved by substitution, between chunks it is
   three small matrix products with the memory, which stays in the first-level cache. One task is one head of one
   row (or a block of its value columns), so that results do not depend on the number of threads.
   The equations are in delta_rule.h; native.py documents the arguments. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../subnormals.h"

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define TILE_ROWS 8
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define TILE_ROWS 4
#else
#define VECTOR_BYTES 16
#define TILE_ROWS 4
#endif

enum { CHUNK = 16, SEGMENT = 4 }; /* tokens a chunk; chunks between two saved memories */

/* Where element (b, t, h, 0) of a tensor lies: strides in elements, the last one being 1. */
typedef struct {
    void *data;
    int64_t b, t, h;
} View;

/* Sizes of a call; `group` value heads read each head of q and k; `blocks` splits the value columns; `overwrite` 0 is
   linear attention. */
typedef struct {
    int64_t batch, time, heads, group, key, value, blocks, overwrite;
} Shape;

static inline int64_t padded(int64_t size) { return (size + 15) / 16 * 16; }

#define REAL float
#define EXP expf
#define NAME(name) name##_float
#include "delta_rule.h"
#undef REAL
#undef EXP
#undef NAME

#define REAL double
#define EXP exp
#define NAME(name) name##_double
#include "delta_rule.h"
